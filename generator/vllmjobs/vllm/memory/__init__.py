"""How much memory a model needs of its GPUs."""
