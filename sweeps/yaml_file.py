"""YAML (and JSON, which is YAML) from a file as a mapping: the one way in which the planner reads files that people may edit."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class UnreadableError(Exception):
    """A file that cannot be read as YAML; its text is the kind of error that was met."""


def read_mapping(path: Path) -> dict[str, Any] | None:
    """The mapping in `path`, references in it left as they stand; None where it holds something else.

    Raises UnreadableError where the file is missing, cannot be read or is no YAML.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        values = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, OmegaConfBaseException, YAMLError) as error:
        raise UnreadableError(type(error).__name__) from error
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else None
