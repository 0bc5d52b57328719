"""Pure array functions. Knows nothing of mechlab."""
