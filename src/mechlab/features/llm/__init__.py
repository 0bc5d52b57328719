"""Explanations and judgements from language models: clients, paid-for answers kept, budgets kept to."""
