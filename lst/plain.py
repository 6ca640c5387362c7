"""Frozen dataclasses from and to plain values (what YAML and JSON hold), read strictly; and the hash of plain values.

An unknown key, a missing one or a wrong type is a ConfigError that names the key's path and the closest known name. Only an
int is widened (to float); nothing else is converted. Not here: what the fields mean (`lst.config`, `sweeps.study`, ...).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Callable, Mapping
from enum import StrEnum
from typing import Any, TypeVar

from lst.errors import ConfigError, did_you_mean

RUN_ID_DIGITS = 12


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """A new dict: `base` with the nested values of `over` put over it."""
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def content_hash(content: Any, digits: int = RUN_ID_DIGITS) -> str:
    """First hex digits of the SHA-256 of `content` as canonical JSON (sorted keys, shortest round-trip floats)."""
    return hashlib.sha256(_canonical_json(content).encode()).hexdigest()[:digits]


def _canonical_json(content: Any) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as plain JSON-able values (enums as strings, tuples as lists)."""
    cls: Any = type(config)  # a class is hashable
    return {name: _plain(getattr(config, name)) for name in _field_names(cls)}


@functools.cache
def _field_names(cls: Any) -> tuple[str, ...]:
    return tuple(f.name for f in dataclasses.fields(cls))


T = TypeVar("T")
C = TypeVar("C")


def kept(config: C, name: str, make: Callable[[C], T]) -> T:
    """`make(config)`, made once for this object: it is frozen, so what follows from it is kept on it, under `name`.

    By object and not by value, since 1, 1.0 and True are equal and yet other texts. Fields, equality and copies with
    changes (dataclasses.replace) do not see it.
    """
    memory = vars(config)
    if name not in memory:
        memory[name] = make(config)
    found: T = memory[name]
    return found


def changed(config: C, **values: Any) -> C:
    """As `dataclasses.replace`, several times as fast: for classes whose instances hold their fields and what is kept."""
    cls: Any = type(config)
    new = object.__new__(cls)
    own, memory = vars(new), vars(config)
    for name in _field_names(cls):
        own[name] = memory[name]
    own.update(values)
    return new  # type: ignore[no-any-return]


def with_number(config: C, name: str, value: int) -> C:
    """`config` with another whole number in the field `name`; texts that are kept on it follow, and need not be made anew."""
    new, before = changed(config, **{name: value}), getattr(config, name)
    for kind, mark in (("_json", f'"{name}":{{}},'), ("_yaml", f" {name}: {{}}\n")):
        text = vars(config).get(kind)
        if text is not None and text.count(mark.format(before)) == 1:
            vars(new)[kind] = text.replace(mark.format(before), mark.format(value))
    return new


def from_dict(cls: type[T], values: dict[str, Any], path: str = "") -> T:
    """Build dataclass `cls` from plain values; `path` is the prefix that errors name. Raises ConfigError."""
    if not isinstance(values, dict):
        raise ConfigError(f"{path or cls.__name__}={values!r} is no mapping; give its fields by name.")
    hints = field_types(cls)  # type: ignore[arg-type]  # a class is hashable
    known = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in known:
            raise ConfigError(f"unknown key '{_join(path, key)}'; {did_you_mean(str(key), known)}")
    for name, spec in known.items():
        required = spec.default is dataclasses.MISSING and spec.default_factory is dataclasses.MISSING
        if required and name not in values:
            raise ConfigError(f"missing key '{_join(path, name)}'; give it a value.")
    return cls(**{key: _convert(hints[key], value, _join(path, key)) for key, value in values.items()})


@functools.cache
def field_types(cls: Any) -> dict[str, Any]:
    """The annotated type of each field of a dataclass."""
    return typing.get_type_hints(cls)


def _convert(hint: Any, value: Any, path: str) -> Any:
    """`value` as the annotated type, widening int to float only."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        known = [a for a in arguments if a is not type(None)]
        return _convert(next((a for a in known if type(value) is a), known[0]), value, path)
    if origin is Mapping:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{path}={value!r} is no mapping; give its fields by name.")
        return {str(key): _convert(arguments[1], item, _join(path, key)) for key, item in value.items()}
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return value if isinstance(value, hint) else from_dict(hint, value, path)
    if isinstance(hint, type) and issubclass(hint, StrEnum):
        if value not in list(hint):
            raise ConfigError(f"{path}={value!r} is unknown; {did_you_mean(str(value), list(hint))}")
        return hint(value)
    if origin is tuple and arguments[1:] == (...,):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{path}={value!r} must be a list.")
        return tuple(_convert(arguments[0], v, f"{path}[{i}]") for i, v in enumerate(value))
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise ConfigError(f"{path}={value!r} must be a list of {len(arguments)} values.")
        return tuple(_convert(a, v, f"{path}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not hint:
        raise ConfigError(f"{path}={value!r} must be of type {hint.__name__}, not {type(value).__name__}.")
    if hint is float and not math.isfinite(value):
        raise ConfigError(f"{path}={value!r} must be finite.")
    return value


def check_once(section: Any) -> None:
    """`section.validate()`, unless this object has passed it."""
    kept(section, "_passed", _passed)


def _passed(section: Any) -> bool:
    section.validate()
    return True


def sections_hash(config: Any, *, without: str, optional: Mapping[str, tuple[str, ...]]) -> str:
    """`content_hash` of a dataclass of sections but for one, put together from the sections': many runs share most of theirs.

    `optional` names a section's fields that are left out where they have their defaults; it is the same for all of a class.
    """

    cls: Any = type(config)

    def text(name: str) -> str:
        return kept(getattr(config, name), "_json", lambda section: _section_json(section, optional.get(name, ())))

    parts = ",".join(f'"{name}":{text(name)}' for name in sorted(_field_names(cls)) if name != without)
    return hashlib.sha256(f"{{{parts}}}".encode()).hexdigest()[:RUN_ID_DIGITS]


def _section_json(section: Any, optional: tuple[str, ...]) -> str:
    left_out = {f.name for f in dataclasses.fields(section) if f.name in optional and getattr(section, f.name) == _default(f)}
    return _canonical_json({name: value for name, value in to_dict(section).items() if name not in left_out})


def _default(spec: dataclasses.Field[Any]) -> Any:
    return spec.default if spec.default_factory is dataclasses.MISSING else spec.default_factory()


_SCALARS = frozenset((str, int, float, bool, type(None)))


def _plain(value: Any) -> Any:
    if type(value) in _SCALARS:
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, StrEnum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value


def _join(path: str, key: object) -> str:
    return f"{path}.{key}" if path else str(key)
