"""Activations: capture in memory, stores on disk."""
