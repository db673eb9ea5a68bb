"""The pure modules of the supervisor: values in, values out, no I/O and no clock.

`model.py` has the values; `step.py` decides what the supervisor does next.
"""
