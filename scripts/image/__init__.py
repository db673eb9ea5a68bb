"""What is in an image of vLLM, and whether any of it is known to be vulnerable; scripts/build runs it."""
