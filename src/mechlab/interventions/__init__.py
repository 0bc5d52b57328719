"""Edits at a site of a running model."""
