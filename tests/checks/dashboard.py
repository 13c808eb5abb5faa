"""Checks a dashboard against the types of Grafana (grafana-foundation-sdk): prints each field that they do not know, and each
value that a field does not allow."""

import enum
import json
import sys
import types
import typing

from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import Dashboard


def unknown(written, known, path):
    """Prints the fields that are lost by parsing."""
    if isinstance(written, dict):
        for name, value in written.items():
            if name not in known:
                print(f"{path}.{name}: unknown field")
            else:
                unknown(value, known[name], f"{path}.{name}")
    elif isinstance(written, list):
        for index, (value, other) in enumerate(zip(written, known, strict=True)):
            unknown(value, other, f"{path}[{index}]")


def fits(value, hint):
    """Whether a value has the type of its field."""
    arguments = typing.get_args(hint)
    match typing.get_origin(hint):
        case typing.Union | types.UnionType:
            return any(fits(value, argument) for argument in arguments)
        case typing.Literal:
            return value in arguments
        case origin if origin is list:
            return isinstance(value, list) and all(fits(item, arguments[0]) for item in value)
        case origin if origin is dict:
            return isinstance(value, dict) and all(fits(item, arguments[1]) for item in value.values())
    if hint in (typing.Any, object):
        return True
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return value in [member.value for member in hint] or isinstance(value, hint)
    if hint is float:
        return isinstance(value, (int, float))
    return isinstance(value, hint)


def misfits(value, path):
    """Prints the fields of an object, and of all in it, that have another type than theirs."""
    if isinstance(value, list):
        for index, item in enumerate(value):
            misfits(item, f"{path}[{index}]")
    elif type(value).__module__.startswith("grafana_foundation_sdk.models"):
        hints = typing.get_type_hints(type(value))
        for name, field in getattr(value, "__dict__", {}).items():
            if name in hints and not fits(field, hints[name]):
                print(f"{path}.{name}: {field!r} is not {hints[name]}")
            misfits(field, f"{path}.{name}")


plugins.register_default_plugins()
with open(sys.argv[1], encoding="utf-8") as file:
    document = json.load(file)
dashboard = Dashboard.from_json(document)
unknown(document, json.loads(json.dumps(dashboard, cls=JSONEncoder)), "dashboard")
misfits(dashboard, "dashboard")
