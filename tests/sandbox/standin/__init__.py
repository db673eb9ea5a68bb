"""A stand-in for vLLM: no model, no GPU, but the outside behaviour that vLLM was measured to have.

For the cluster tests and the local sandbox, on machines without a GPU. What it mirrors is in
What was measured on vLLM 0.32.0 for the CPU, and read in the source up to 0.33; each module names
the fact it stands for. Its text is nonsense on purpose, its timing is a setting, and its faults come
when they are asked for: `knobs.py` has the table.

    tests/sandbox/bin/stand-in-engine serve tiny/llama --port 8000 --served-model-name chat

Read in this order: `flags`, `knobs` (what it is told), `engine`, `text`, `metrics` (the pretended GPU),
`protocol`, `app` (HTTP), `server` (from the first signal handler to the exit code).
"""
