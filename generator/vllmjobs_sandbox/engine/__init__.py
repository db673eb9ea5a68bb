"""A stand-in for vLLM: no model, no GPU, but the outside behaviour that vLLM was measured to have.

For the cluster tests and the local sandbox, on machines without a GPU. `tests/acceptance/test_contract.py`
puts the same requests, signals and deaths to it and to vLLM 0.32.0 on the CPU; each module names the fact it
stands for. Its text is nonsense on purpose, its timing is a setting, and its faults come when they are asked
for: `knobs.py` has the table.

    python -m vllmjobs_sandbox.engine serve tiny/llama --port 8000 --served-model-name chat

Read in this order: `flags`, `knobs` (what it is told), `engine`, `text`, `metrics` (the pretended GPU),
`protocol`, `app` (HTTP), `server` (from the first signal handler to the exit code).

What differs from vLLM on purpose:

- A token is a word, so that tests count tokens with `str.split`. vLLM counts a chat template's words too.
- `system_fingerprint` is in each chunk of a stream, where vLLM has it in the last: a stream that is cut is to
  say which version began it.
- Fields that vLLM answers as null are left out, and so is the header `vary: Origin`: nobody here reads them.
- Sampling parameters (`temperature`, `top_p`, `stop` ...) are not looked at: there is nothing to sample. vLLM
  refuses those that are out of range, and n above 1 with temperature 0.
- The words of an error that pydantic raises in vLLM are its own; status, type and param are the same.
- Half of vLLM's metrics are left out, which nothing here reads; the rest have its types, labels and buckets.
- While it drains, vLLM refuses new requests in words, and never answers those in token ids, whose connections
  it resets at its end: only its tokenizer knows of the drain. The stand-in refuses both.
- Without `--shutdown-timeout`, vLLM ends its streams with `finish_reason: abort`, or leaves them without
  another word, whichever of its processes is faster; the stand-in always leaves them.
- A request that outlasts `--shutdown-timeout` is left like those, or ended with an error, and vLLM waits for
  its client; the stand-in breaks the connection, so that no client takes half an answer for a whole one.
- A SIGTERM that comes while it waits for its engine to load is lost on vLLM, which serves until it gets
  another (before that, it dies of a KeyboardInterrupt of its own, `run_server`); the stand-in exits with 0 at
  once, so that no test waits for SIGKILL. `ignore-term` is for those that want to.
- Between the engine's end and its own, vLLM answers /health with 503 for a moment; the stand-in's knobs make
  that moment as long as a test needs.
"""
