"""The main job, from a model and a corpus to a page."""
