"""GPU cards as one kind of row, and those of this machine, read through NVML."""
