"""The memory that a model needs of its GPUs."""
