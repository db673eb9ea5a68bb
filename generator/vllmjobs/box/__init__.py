"""One box: an environment on a single machine, without Nomad. Pure; `boxes.py` acts."""
