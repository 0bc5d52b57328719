"""Subject models, the decomposed forward and the bundled Fable model."""
