"""Observe, decide, act, until a release is done."""
