"""Makers of the tables of what vLLM accepts, from vLLM's own code; they also ask it about command lines."""
