"""The packages in an image of vLLM, and their known vulnerabilities; scripts/build runs it."""
