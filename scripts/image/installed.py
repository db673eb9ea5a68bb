"""Runs inside the image, from stdin: prints what its Python has installed, as JSON."""

import json
import sys
from importlib.metadata import distributions

packages = []
for found in distributions():
    told = found.metadata
    if told is None or "Name" not in told:  # what a broken removal has left
        continue
    licenses = told.get_all("License-Expression") or told.get_all("License")
    packages.append(
        {
            "name": told["Name"],
            "version": found.version,
            "license": licenses[0] if licenses else None,
            "classifiers": [one for one in told.get_all("Classifier") or [] if one.startswith("License ::")],
        }
    )
print(json.dumps({"prefix": sys.prefix, "packages": packages}))
