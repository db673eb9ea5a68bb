"""Room in a cluster, and why there is none."""
