"""The base of what is decided, observed and printed."""

import msgspec


class Value(msgspec.Struct, frozen=True, kw_only=True):
    """A value: a struct that never changes. As JSON it has every name, also where a field has its default."""
