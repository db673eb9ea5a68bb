"""Makes generator/vllmjobs/vllm/tables from vLLM's own code, and asks that code about command lines."""
