"""How fast a model runs."""
