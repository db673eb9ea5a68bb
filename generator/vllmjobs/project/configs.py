"""The config.json of each model: in the file named, the model's own folder, or the Hugging Face cache."""

import json
import os
from pathlib import Path
from typing import Any

from vllmjobs.environment.load import contents
from vllmjobs.environment.model import Environment, Model
from vllmjobs.environment.tree import YamlNode, locate

Configs = dict[str, dict[str, Any] | str]


def configs(environment: Environment, tree: YamlNode) -> Configs:
    """Return the config.json of each model that has one on this machine, or why it cannot be read.

    A model without an entry has none here: it may be in the table of known models.
    """
    result: Configs = {}
    hub = _hub()
    for name, model in environment.models.items():
        if model.config:
            # As `extends`, from the folder of the file that says it.
            source = locate(tree, ("models", name, "config")).source
            folder = Path() if source.startswith("--set") else Path(source).parent
            result[name] = _read(folder / model.config)
            continue
        own_folder = Path(model.model) if model.model.startswith(("/", "./")) else _snapshot(hub, model)
        config = _read(own_folder / "config.json") if own_folder else None
        if isinstance(config, dict):  # a broken one is no error: nobody has named it
            result[name] = config
    return result


def _hub() -> Path | None:
    """Return the cache of huggingface_hub; None where there is no home for it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    try:
        return Path(os.environ.get("HF_HUB_CACHE") or Path(home, "hub")).expanduser()
    except RuntimeError:
        return None


def _snapshot(hub: Path | None, model: Model) -> Path | None:
    """Return the model's folder in that cache, `models--ORG--NAME/snapshots/COMMIT`; None without one."""
    try:
        folder = hub and hub / f"models--{model.model.replace('/', '--')}"
        if not folder or not folder.is_dir():
            return None
        revision = str(model.args.get("revision") or "main")
        ref = folder / "refs" / revision
        return folder / "snapshots" / (ref.read_text().strip() if ref.is_file() else revision)
    except (OSError, ValueError):  # a name that no file can have
        return None


def _read(path: Path) -> dict[str, Any] | str:
    try:
        config = json.loads(contents(path))
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"
    except (ValueError, RecursionError):  # not UTF-8, not JSON, or nested a thousand times
        return f"{path} is not JSON; name the config.json of the model"
    return (
        config if isinstance(config, dict) else f"{path} is no JSON object; name the config.json of the model"
    )
