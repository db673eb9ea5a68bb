"""Knowledge of vLLM: its releases, the arguments that each accepts, the memory that a model needs."""
