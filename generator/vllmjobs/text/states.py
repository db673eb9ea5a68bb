"""The states that Nomad's API gives to allocations and deployments."""

# nomad/structs Allocation.ClientTerminalStatus: until one of these, the scheduler counts its devices.
ENDED = ("complete", "failed", "lost")  # the ClientStatus of an allocation that has ended

# nomad/structs/deployment.go Active
ACTIVE = ("running", "paused", "blocked", "unblocking", "initializing", "pending")
"""The Status of a deployment that has not ended."""
