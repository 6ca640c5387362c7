"""Checks of single values that configurations share: each raises a ConfigError that names the key and its value."""

from __future__ import annotations

from lst.errors import ConfigError, did_you_mean


def require_positive(name: str, value: float) -> None:
    if not value > 0:
        raise ConfigError(f"{name}={value} must be positive.")


def require_seed(name: str, value: int) -> None:
    if not 0 <= value < 1 << 63:
        raise ConfigError(f"{name}={value} is no seed; give 0 or more, below 2^63.")


def require_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name}={value} is no share; give a number from 0 to 1.")


def require_choice(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{name}='{value}' is unknown; {did_you_mean(value, known)}")
