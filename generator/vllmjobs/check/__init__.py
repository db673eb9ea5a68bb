"""Rules from an environment to findings: they find offline what would fail on the GPU."""
