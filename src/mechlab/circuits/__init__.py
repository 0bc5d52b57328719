"""Circuits: which edges of a model carry a behaviour, found, checked and scored."""
