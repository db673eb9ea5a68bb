"""Runs inside the image, from stdin: prints what its Python has installed, as JSON."""

import json
import sys
from importlib.metadata import distributions

packages = []
for distribution in distributions():
    metadata = distribution.metadata
    if metadata is None or "Name" not in metadata:  # what a broken removal has left
        continue
    licenses = metadata.get_all("License-Expression") or metadata.get_all("License")
    packages.append(
        {
            "name": metadata["Name"],
            "version": distribution.version,
            "license": licenses[0] if licenses else None,
            "classifiers": [
                one for one in metadata.get_all("Classifier") or [] if one.startswith("License ::")
            ],
        }
    )
print(json.dumps({"prefix": sys.prefix, "packages": packages}))
