"""GPUs that do not exist: a Nomad device plugin, and an NVML."""
