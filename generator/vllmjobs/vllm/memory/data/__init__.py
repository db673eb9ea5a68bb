"""Data of GPUs and models: files, each number with its source beside it."""

import pkgutil


def data(name: str) -> bytes:
    """Return a file of this folder; importlib.resources would take 7 ms of a cold start to say the same."""
    found = pkgutil.get_data(__name__, name)
    assert found is not None, name
    return found
