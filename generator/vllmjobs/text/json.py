"""The shape of JSON."""

from typing import Any

Json = dict[str, Any]  # an object of JSON, such as Nomad's API returns, by the names of its fields
