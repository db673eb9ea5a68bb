"""What vLLM accepts, and what it needs."""
