"""One box: an environment on a single machine, without Nomad. Pure, but for `machine.py`, which acts."""
