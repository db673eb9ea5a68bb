"""Which arguments each release of vLLM accepts."""
