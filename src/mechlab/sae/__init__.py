"""Dictionaries (sparse autoencoders): architectures, training, evaluation, files."""
