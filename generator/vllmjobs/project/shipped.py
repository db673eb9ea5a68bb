"""The folders that come with the package: templates, examples, pages."""

from pathlib import Path

_PACKAGE = Path(__file__).parents[1]


def shipped(folder: str) -> Path:
    """Return `jobs`, `envs` or `docs` as shipped: in the package of a wheel, at the top of a checkout."""
    installed = _PACKAGE / folder
    return installed if installed.is_dir() else _PACKAGE.parents[1] / folder
