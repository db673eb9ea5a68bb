"""Errors of a sandbox, in words that a person can act on."""


class SandboxError(Exception):
    """A step of the sandbox that failed: what was wanted, and the evidence."""
