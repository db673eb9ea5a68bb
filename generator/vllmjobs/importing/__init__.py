"""Settings of laureano-arcanio/balanced-vllm-docker, to the environment file that says the same."""
