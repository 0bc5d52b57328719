"""Circuit search: removing edges, cutting by scores, learning masks, following paths."""
