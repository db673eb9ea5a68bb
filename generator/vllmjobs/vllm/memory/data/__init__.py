"""Data of GPUs and models: files, each number with its source beside it."""

import pkgutil


def data(name: str) -> bytes:
    """Return a file of this folder; importlib.resources would take 7 ms of a cold start to say the same."""
    content = pkgutil.get_data(__name__, name)
    assert content is not None, name
    return content
