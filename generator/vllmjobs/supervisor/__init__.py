"""`vllmjobs-supervise`: what systemd would do for vLLM, as PID 1 of a container or on one box.

The standard library and nvidia-ml-py only, so that any image with Python can hold it. `core/` decides and is
pure; all else acts.
"""
