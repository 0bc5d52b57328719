"""Token streams, the Fable corpus, task prompts and planted dictionaries."""
