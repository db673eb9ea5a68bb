"""The sandbox: a real Consul, Nomad, Fabio and nginx on loopback, with simulated GPUs.

`vllmjobs-sandbox` runs it for a person, tests/cluster uses it as a fixture. README.md describes its rooms.
"""
