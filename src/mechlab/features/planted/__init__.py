"""Features whose explanation is known, to test explainers and scores on."""
