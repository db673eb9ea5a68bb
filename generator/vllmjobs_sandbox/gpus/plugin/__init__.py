"""A Nomad device plugin that presents `nvidia/gpu` devices on a machine that has none."""
