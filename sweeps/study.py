"""What a study is: the grid of budgets, sizes, arms and seeds, what is matched in it, and everything its runs share.

Frozen and read strictly from plain dicts (`StudyConfig.from_dict`); YAML is read through OmegaConf (`load_study`), which
is imported only there. Every field can be overridden on `plan-sweep`'s command line. Not here: how long a run must be
(`sweeps.allocate`), what a plan costs (`sweeps.price`).

A study's length axis is exactly one of `budgets` (training FLOPs), `tokens`, `units` (of the reference arm's run) and
`tokens_per_param` (times the reference arm's parameters).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import Any

from lst.config import Arm, EvalConfig, ExecutionConfig
from lst.errors import ConfigError, did_you_mean
from lst.ladder import SIZES, BaselineMatch, named_count, require_baseline_match
from lst.plain import from_dict, merge, to_dict
from sweeps.admit import AdmissionConfig
from sweeps.after_options import AfterOptions
from sweeps.options import MixtureOptions, ModelOptions, PatchingOptions, TrainOptions
from sweeps.price import PriceConfig
from sweeps.recipe import RecipeConfig
from sweeps.spend import SpendConfig
from sweeps.variants import VARIANT_SECTIONS, Variants, arm_of, read_variants

STUDY_FOLDER = Path(__file__).parent / "conf" / "study"


class Matching(StrEnum):
    """What is equal inside a match group (DESIGN 4)."""

    UNIT = "unit"  # steps and units: the paper's "compute-controlled"
    FLOP = "flop"  # true training FLOPs
    DATA = "data"  # tokens: the paper's "data-controlled"


class ContextMatch(StrEnum):
    """What is equal in a sequence across arms (DESIGN rule 10)."""

    UNITS = "units"
    TOKENS = "tokens"


class Length(StrEnum):
    """The study's length axis: the name of the one list that is given."""

    BUDGETS = "budgets"
    TOKENS = "tokens"
    UNITS = "units"
    TOKENS_PER_PARAM = "tokens_per_param"


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """A study. Collections are tuples; an empty one means what its line says."""

    name: str  # name of the study, in every row of its plan
    data: str = "embedded"  # folder of a prepared data set, 'embedded', or stated statistics: 'paper', or a YAML file
    arms: tuple[str, ...] = (Arm.BASELINE, Arm.LST_STATIC)  # arms to compare, variants of arms among them
    variants: Variants = field(default_factory=dict)  # ARM:NAME -> options of patching, model and mixture that differ
    reference_arm: str = Arm.BASELINE  # the arm that the others are matched to
    sizes: tuple[str, ...] = ("tiny",)  # rungs of the ladder (lst.ladder.SIZES)
    arm_sizes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # arms that are planned at some sizes only
    baseline_match: str = BaselineMatch.GLOBAL_SHAPE.value  # global_shape | lst_params: what the baseline shares with LST
    seeds: tuple[int, ...] = (0,)  # seeds of every cell
    budgets: tuple[float, ...] = ()  # length axis: training FLOPs
    tokens: tuple[float, ...] = ()  # length axis: tokens
    units: tuple[float, ...] = ()  # length axis: units
    tokens_per_param: tuple[float, ...] = ()  # length axis: tokens per parameter
    matching: Matching = Matching.FLOP  # unit | flop | data
    context_match: ContextMatch = ContextMatch.UNITS  # units | tokens
    seq_len_units: int = 4096  # units of a sequence (context_match=tokens: the reference arm's)
    dtype: str = "float32"  # float32 | bfloat16
    stories_from: float = 0.0  # runs of at least this length (on the length axis) score evaluation.story_items
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    patching: PatchingOptions = field(default_factory=PatchingOptions)
    mixture: MixtureOptions = field(default_factory=MixtureOptions)
    model: ModelOptions = field(default_factory=ModelOptions)
    train: TrainOptions = field(default_factory=TrainOptions)
    evaluation: EvalConfig = field(default_factory=EvalConfig)
    execution: ExecutionConfig = field(default_factory=ExecutionConfig)
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)
    price: PriceConfig = field(default_factory=PriceConfig)
    after: AfterOptions = field(default_factory=AfterOptions)
    spend: SpendConfig = field(default_factory=SpendConfig)  # one total instead of a length axis, or above one
    notes: tuple[str, ...] = ()  # what a reader of the plan must know, printed with it

    @cached_property
    def length(self) -> Length:
        """The length axis that is given; budgets where a total chooses them. Raises ConfigError unless it is exactly one."""
        given = [axis for axis in Length if getattr(self, axis.value)]
        if not given and self.spend.total:
            return Length.BUDGETS
        if len(given) != 1:
            found = " and ".join(given) or "none"
            raise ConfigError(
                f"a study has exactly one length axis of {', '.join(Length)}, or a total (spend); this one has {found}."
            )
        return given[0]

    @cached_property
    def lengths(self) -> tuple[float, ...]:
        """The values of the length axis, rising; none where a total chooses them (sweeps.spending)."""
        values: tuple[float, ...] = getattr(self, self.length.value)
        return tuple(sorted(values))

    def sizes_of(self, arm: str) -> tuple[str, ...]:
        """The sizes at which `arm` is planned, in the ladder's order."""
        wanted = self.arm_sizes.get(arm, self.sizes)
        return tuple(size for size in SIZES if size in wanted and size in self.sizes)

    @cached_property
    def ordered_arms(self) -> tuple[str, ...]:
        """The arms in their order (lst.config.Arm), each followed by its variants as they are listed."""
        return tuple(sorted(self.arms, key=lambda name: (list(Arm).index(arm_of(name)), name in self.variants)))

    def of_arm(self, name: str) -> StudyConfig:
        """The study as the arm `name` sees it: a variant with the options that it changes."""
        changed = self.variants.get(name, {})
        if not changed:
            return self
        sections: dict[str, Any] = {}
        for key in VARIANT_SECTIONS:
            section = getattr(self, key)
            sections[key] = from_dict(type(section), merge(to_dict(section), changed.get(key, {})), f"variants.{name}.{key}")
        return dataclasses.replace(self, reference_arm=changed.get("reference", self.reference_arm), **sections)

    def validate(self) -> None:
        """Raises ConfigError on the first value that cannot be."""
        names = [*Arm, *self.variants]
        _check_names("arms", self.arms, names)
        _check_names("sizes", self.sizes, SIZES)
        _check_names("arm_sizes", self.arm_sizes, names)
        for arm, sizes in self.arm_sizes.items():
            _check_names(f"arm_sizes.{arm}", sizes, SIZES)
        for arm in self.arms:
            _check_networks(self.sizes_of(arm))
        for key in _LISTS:
            _check_distinct(key, getattr(self, key))
        for key in ("arms", "sizes", "seeds"):
            if not getattr(self, key):
                raise ConfigError(f"{key} is empty; give at least one.")
        for axis in Length:
            for place, value in enumerate(getattr(self, axis.value)):
                if not (math.isfinite(value) and value > 0):
                    raise ConfigError(f"{axis.value}[{place}]={value} must be a positive finite number.")
        self._validate_choices()
        sections = (
            self.recipe,
            self.model,
            self.train,
            self.evaluation,
            self.execution,
            self.admission,
            self.price,
            self.after,
            self.spend,
        )
        for section in sections:
            section.validate()
        for name in self.variants:
            self.of_arm(name).model.validate()
        if self.train.init_from and not self.execution.init_path:
            raise ConfigError(
                f"train.init_from='{self.train.init_from}' names weights, but execution.init_path is empty; give their folder."
            )

    def _validate_choices(self) -> None:
        require_baseline_match(self.baseline_match)
        if not self.name or "/" in self.name:
            raise ConfigError(f"name='{self.name}' is no study name; give a word without '/'.")
        if self.seq_len_units < 1:
            raise ConfigError(f"seq_len_units={self.seq_len_units} must be positive.")
        if "${" in self.data:
            raise ConfigError(f"data='{self.data}' contains '${{', a reference in configuration files; rename the folder.")
        if self.execution.data_path != ExecutionConfig.data_path:
            raise ConfigError(f"execution.data_path='{self.execution.data_path}' is set by data; give data=FOLDER instead.")
        for seed in self.seeds:
            if not 0 <= seed < 1 << 63:
                raise ConfigError(f"seeds has {seed}; a seed is 0 or more, below 2^63.")
        needs_reference = self.matching is not Matching.FLOP or self.length is not Length.BUDGETS
        if needs_reference or self.context_match is ContextMatch.TOKENS:
            for arm in self.arms:
                self._require_reference(arm)
        if self.matching is Matching.UNIT and self.context_match is ContextMatch.TOKENS:
            raise ConfigError(
                "matching=unit wants equal units a step, context_match=tokens wants sequences of fewer units for patched arms; "
                "choose context_match=units, or matching=flop or data."
            )

    def _require_reference(self, arm: str) -> None:
        """An arm is solved from its reference arm's rows, so there must be one for each of its own."""
        reference = self.of_arm(arm).reference_arm
        if reference not in self.arms:
            raise ConfigError(
                f"reference_arm='{reference}' is not among arms={list(self.arms)}; the others are matched to it: add it."
            )
        if self.of_arm(reference).reference_arm != reference:
            raise ConfigError(f"arm '{arm}' is matched to '{reference}', which is matched to another one; give it no reference.")
        missing = [size for size in self.sizes_of(arm) if size not in self.sizes_of(reference)]
        if missing:
            raise ConfigError(
                f"arm '{arm}' is planned at size '{missing[0]}', where the reference arm '{reference}' is not; "
                f"add the size to arm_sizes.{reference}."
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudyConfig:
        """Read strictly: an unknown key, a wrong type or an impossible value is a ConfigError that names it."""
        scalars = {k: v for k, v in values.items() if k not in _LISTS and k not in ("arm_sizes", "variants")}
        study = from_dict(cls, scalars)
        lists: dict[str, Any] = {k: _read_list(k, values[k], kind) for k, kind in _LISTS.items() if k in values}
        if "arm_sizes" in values:
            filters = values["arm_sizes"]
            if not isinstance(filters, Mapping):
                raise ConfigError(f"arm_sizes={filters!r} is no mapping; write arm_sizes={{arm: [size, ...]}}.")
            lists["arm_sizes"] = {str(arm): _read_list(f"arm_sizes.{arm}", sizes, str) for arm, sizes in filters.items()}
        if "variants" in values:
            lists["variants"] = read_variants(values["variants"])
        study = dataclasses.replace(study, **lists)
        study.validate()
        return study


_LISTS: dict[str, type] = {
    "arms": str,
    "sizes": str,
    "seeds": int,
    "budgets": float,
    "tokens": float,
    "units": float,
    "tokens_per_param": float,
    "notes": str,
}


def study_to_dict(study: StudyConfig) -> dict[str, Any]:
    """A study as plain values, as `StudyConfig.from_dict` reads them."""
    plain = to_dict(study)
    plain["arm_sizes"] = {arm: list(sizes) for arm, sizes in study.arm_sizes.items()}
    return plain


def study_names() -> tuple[str, ...]:
    """The studies that come with the package."""
    return tuple(sorted(path.stem for path in STUDY_FOLDER.glob("*.yaml")))


def load_study(name: str) -> StudyConfig:
    """The named study as it stands in its file, without overrides. Raises ConfigError on an unknown name."""
    from omegaconf import OmegaConf

    require_study_name(name)
    values = OmegaConf.to_container(OmegaConf.load(STUDY_FOLDER / f"{name}.yaml"), resolve=True)
    assert isinstance(values, dict)
    return StudyConfig.from_dict({str(key): value for key, value in values.items()})


def require_study_name(name: str) -> None:
    if name not in study_names():
        raise ConfigError(f"study='{name}' is unknown; {did_you_mean(name, study_names())}")


def _read_list(key: str, value: Any, kind: type) -> tuple[Any, ...]:
    """A list of `kind`; an int is widened to float, nothing else is converted."""
    if not isinstance(value, list | tuple):
        raise ConfigError(f"{key}={value!r} must be a list; write {key}=[{value}].")
    items = []
    for place, item in enumerate(value):
        widened = _widened(item) if kind is float and type(item) is int else item
        if key.partition(".")[0] in ("sizes", "arm_sizes") and type(item) in (int, float):
            raise ConfigError(f"{key}[{place}]={item} is a number, and sizes are names; {_nearest_sizes(item)}")
        if not isinstance(widened, kind) or isinstance(widened, bool):
            raise ConfigError(f"{key}[{place}]={item!r} must be of type {kind.__name__}, not {type(item).__name__}.")
        items.append(widened)
    return tuple(items)


def _widened(value: int) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf


def _check_names(key: str, names: Any, known: Any) -> None:
    for name in names:
        if name not in list(known):
            raise ConfigError(f"{key} has '{name}', which is unknown; {did_you_mean(str(name), [str(k) for k in known])}")


def _nearest_sizes(number: float) -> str:
    """The names that `number` may mean: a width, or parameters in ones, millions or billions."""
    if not 0 < number < math.inf:
        return did_you_mean(str(number), SIZES)
    counts = {size: count for size in SIZES if (count := named_count(size)) is not None}
    far = {size: min(abs(math.log(count / (number * unit))) for unit in (1, 1e6, 1e9)) for size, count in counts.items()}
    nearest = sorted(far, key=lambda size: far[size])[:2]
    if f"w{number}" in SIZES:
        nearest = [f"w{number}", nearest[0]]
    return f"the nearest are '{nearest[0]}' and '{nearest[1]}'."


def _check_networks(sizes: tuple[str, ...]) -> None:
    """Two rungs of one shape would give every run twice."""
    for place, size in enumerate(sizes):
        twin = next((other for other in sizes[:place] if SIZES[other] == SIZES[size]), None)
        if twin is not None:
            raise ConfigError(f"sizes has '{twin}' and '{size}', two names of one network; give one of them.")


def _check_distinct(key: str, values: tuple[Any, ...]) -> None:
    twice = [value for place, value in enumerate(values) if value in values[:place]]
    if twice:
        raise ConfigError(f"{key} has {twice[0]!r} twice; give each once.")
