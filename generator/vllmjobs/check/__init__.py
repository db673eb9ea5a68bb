"""What would fail on the GPU, found offline: rules from an environment to findings."""
