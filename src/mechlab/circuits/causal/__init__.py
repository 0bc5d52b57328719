"""Causal claims: interchange interventions, distributed alignment search, and how they can mislead."""
