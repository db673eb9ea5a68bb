"""GPU cards as one kind of row, and NVML, which tells them of this machine."""
