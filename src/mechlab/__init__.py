"""mechlab: a mechanistic-interpretability workbench."""
