"""Features in circuits: sparse feature circuits, and attribution graphs through transcoders."""
