"""What can go wrong with a sandbox, said so that a person can act on it."""


class SandboxError(Exception):
    """A step of the sandbox that failed: what was wanted, and the evidence."""
