"""The arguments that each release of vLLM accepts."""
