"""Where a cluster has room, and why it has none."""
