"""How good a circuit is: faithful, complete, minimal, stable, and true to a known graph."""
