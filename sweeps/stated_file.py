"""Stated sequence statistics as a file: what a plan needs of the data, in numbers that each name their source.

    data=paper           the paper's, which come with the package (sweeps/conf/statistics)
    data=FILE.yaml       a user's own, or those of a prepared data set (`plan-sweep statistics study=NAME out=FILE.yaml`)

Read strictly: an unknown key, a wrong type, an impossible number or a number without a source is a ConfigError. Not here:
what follows from the numbers (`sweeps.stated`), measuring them (`sweeps.export`). docs/planning.md describes the keys.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lst.config import Patching, PatchingConfig
from lst.errors import ConfigError, did_you_mean
from lst.plain import content_hash, from_dict, to_dict
from sweeps.yaml_file import UnreadableError, read_mapping

STATISTICS_FOLDER = Path(__file__).parent / "conf" / "statistics"
SUFFIXES = (".yaml", ".yml")
STATED = "stated:"  # how the data_id of such statistics begins
SPEECH_TOKENS_PER_HOUR = 90_000  # 25 Hz


@dataclass(frozen=True, kw_only=True)
class UnitLength:
    """How one way of cutting makes units of speech."""

    mean_length: float  # speech tokens of a unit, on the mean
    complete: float = 1.0  # share of the units that close at their own last token (lst/patching.py)


@dataclass(frozen=True, kw_only=True)
class InterleavedStatistics:
    """Interleaved documents, at one mixture; shares are of all tokens but BOS and EOS, and what they leave is markers."""

    speech_per_text_words: float  # the mixture's option for which the shares hold, as realised
    text_span_words: float  # the mean words of a text span for which they hold
    speech_share: float
    text_share: float
    speech_tokens_per_word: float  # of a spoken word, silence included
    document_tokens: tuple[
        float, ...
    ] = ()  # lengths of the documents in which even places of the stream lie, without BOS and EOS; () = endless

    @property
    def marker_share(self) -> float:
        return max(0.0, 1.0 - self.speech_share - self.text_share)


@dataclass(frozen=True, kw_only=True)
class TextStatistics:
    """Documents of text alone."""

    document_tokens: tuple[float, ...] = ()  # as above; markers left out too


@dataclass(frozen=True, kw_only=True)
class StatedStatistics:
    """What a plan needs of the data."""

    name: str
    source: str  # where the numbers are from
    text_vocab: int
    speech_vocab: int
    speech_hours: Mapping[str, float]  # of unique speech by corpus, 90,000 tokens an hour
    interleaved: InterleavedStatistics
    text: TextStatistics
    units: Mapping[str, UnitLength]  # by `unit_key`
    sources: Mapping[str, str] = field(default_factory=dict)  # dotted key of a number -> where it is from

    @property
    def unique_speech_tokens(self) -> float:
        return SPEECH_TOKENS_PER_HOUR * sum(self.speech_hours.values())

    @property
    def data_id(self) -> str:
        """`stated:` and the hash of the numbers; names and sources do not count."""
        return STATED + content_hash(_numbers(self))

    def unit_length(self, kind: Patching, patching: PatchingConfig, pieces: int) -> UnitLength:
        """How speech is cut. Raises ConfigError where the statistics do not say it."""
        key = unit_key(kind, patching, pieces)
        if not key:
            return UnitLength(mean_length=1.0)
        if key not in self.units:
            raise ConfigError(
                f"the stated statistics '{self.name}' have no units.{key}, only {', '.join(self.units)}; "
                "add its mean_length to a copy of the file, or plan on a prepared data set with data=FOLDER."
            )
        return self.units[key]

    def validate(self) -> None:
        """Raises ConfigError on a number that cannot be, or that has no source."""
        for key, value in _flat(_numbers(self)):
            if not (math.isfinite(value) and value >= 0):
                raise ConfigError(f"{key}={value} of the statistics '{self.name}' must be a finite number, 0 or more.")
            if not any(key == known or key.startswith(known + ".") for known in self.sources):
                raise ConfigError(f"{key}={value} of the statistics '{self.name}' has no source; add sources.{key}.")
        mixed = self.interleaved
        if not 0 < mixed.speech_share + mixed.text_share <= 1 + 1e-9 or not mixed.speech_share or not mixed.text_share:
            raise ConfigError(
                f"interleaved.speech_share={mixed.speech_share} and text_share={mixed.text_share} of the statistics "
                f"'{self.name}' must be positive shares that sum to 1 at most."
            )
        for name in ("speech_per_text_words", "text_span_words", "speech_tokens_per_word"):
            if not getattr(mixed, name):
                raise ConfigError(f"interleaved.{name} of the statistics '{self.name}' must be positive.")
        if not self.unique_speech_tokens:
            raise ConfigError(f"speech_hours of the statistics '{self.name}' sum to 0; give the hours of unique speech.")
        for key, unit in self.units.items():
            if unit.mean_length < 1 or unit.complete > 1:
                raise ConfigError(
                    f"units.{key} of the statistics '{self.name}' has mean_length={unit.mean_length}, complete={unit.complete}; "
                    "a unit has 1 token or more, and the share of complete ones is 1 at most."
                )


def unit_key(kind: Patching, patching: PatchingConfig, pieces: int) -> str:
    """The name of a way of cutting: static_4, aligned_word_separate, pieces_1000; "" where each speech token is a unit."""
    if kind is Patching.TOKEN:
        return f"pieces_{pieces}" if pieces else ""
    if kind is Patching.STATIC:
        return f"static_{patching.patch_size}"
    return f"aligned_{patching.aligned_unit}_{patching.silence_rule}"


def is_stated(data: str) -> bool:
    """Whether a study's `data` names stated statistics, not a data set."""
    return data in stated_names() or (data.endswith(SUFFIXES) and not Path(data).is_dir())


def stated_names() -> tuple[str, ...]:
    """The stated statistics that come with the package."""
    return tuple(sorted(path.stem for path in STATISTICS_FOLDER.glob("*.yaml")))


def read_stated(data: str) -> StatedStatistics:
    """Statistics by name or from a file. Raises ConfigError where there are none, or where they cannot be."""
    path = STATISTICS_FOLDER / f"{data}.yaml" if data in stated_names() else Path(data)
    if not path.exists():
        raise ConfigError(f"data='{data}' is no file; {did_you_mean(data, stated_names())}")
    try:
        values = read_mapping(path)
    except UnreadableError as error:
        raise ConfigError(f"data='{data}' cannot be read as statistics ({error}); check the file.") from error
    if values is None:
        raise ConfigError(f"data='{data}' is no mapping; see sweeps/conf/statistics/paper.yaml for the keys.")
    return from_plain(values)


def from_plain(values: Mapping[str, Any]) -> StatedStatistics:
    """Statistics from plain values, as a file holds them. Raises ConfigError."""
    values = dict(values)
    hours, units, sources = (_mapping(key, values.pop(key, {})) for key in ("speech_hours", "units", "sources"))
    for name, value in hours.items():
        if type(value) not in (int, float):
            raise ConfigError(f"speech_hours.{name}={value!r} must be a number of hours.")
    for key, value in sources.items():
        if not isinstance(value, str) or not value:
            raise ConfigError(f"sources.{key}={value!r} must be a text.")
    stated = StatedStatistics(
        **vars(from_dict(_Scalars, values)),
        speech_hours={name: float(value) for name, value in hours.items()},
        units={name: from_dict(UnitLength, value, f"units.{name}") for name, value in units.items()},
        sources=sources,
    )
    stated.validate()
    return stated


def to_plain(stated: StatedStatistics) -> dict[str, Any]:
    """Plain values that `from_plain` reads."""
    plain = to_dict(stated)
    plain["units"] = {key: to_dict(unit) for key, unit in stated.units.items()}
    return plain


@dataclass(frozen=True, kw_only=True)
class _Scalars:
    """What the strict reader can read by itself; mappings are read apart."""

    name: str
    source: str
    text_vocab: int
    speech_vocab: int
    interleaved: InterleavedStatistics
    text: TextStatistics


def _mapping(key: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{key}={value!r} is no mapping; give its values by name.")
    return {str(name): item for name, item in value.items()}


def _numbers(stated: StatedStatistics) -> dict[str, Any]:
    return {key: value for key, value in to_plain(stated).items() if key not in ("name", "source", "sources")}


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, float]]:
    """(dotted key, number) of nested plain values; a list's items share its key."""
    if isinstance(content, Mapping):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else key)
    elif isinstance(content, list):
        for item in content:
            yield from _flat(item, prefix)
    else:
        yield prefix, float(content)
