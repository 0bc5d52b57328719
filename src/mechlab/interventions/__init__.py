"""Edits at a site of a running model: what to do (edits), where (positions), how much (strength)."""
