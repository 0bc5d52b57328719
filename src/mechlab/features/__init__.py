"""Features: the index of where each one fires, explanations that predict it, and their scores."""
