"""Causal claims: interchange interventions, distributed alignment search, and how they can mislead.

``model`` and ``problem``: a causal model and its prompts; ``interchange``: does a place hold a variable;
``das``: find the subspace that does; ``illusion``: is that subspace what the model uses; ``impose`` and
``imposed``: train a model whose circuit is a given causal model.
"""
