"""Scores of explanations: what judges are asked, judges, and measures with intervals and controls."""
