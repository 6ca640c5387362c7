"""Where the paper is silent or contradicts itself, and a plan touches it: printed unaided, with the plan's own figures.

Each entry is one of the paper's gaps as this project counts them: which plans it touches, and a sentence whose numbers are
computed from the plan's rows and its statistics. What the paper prints is quoted; nothing that follows from it is. Choices
that follow from a gap are in `lst.assumptions`. Not here: token accounts (`sweeps.accounting`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lst.config import ARM_PATCHING, Arm, Patching
from lst.hardware import GPU_PROFILES
from lst.ladder import named_count
from sweeps.accounting import BILLION, accounts
from sweeps.columns import PlanRow
from sweeps.stated_file import StatedStatistics, read_stated
from sweeps.study import Length, Matching, StudyConfig
from sweeps.variants import arm_of

if TYPE_CHECKING:
    from sweeps.plan import Plan

PAPER_STUDY = "lst_"  # how the names of the paper's experiments begin
PAPER_STEPS, PAPER_GPUS, PAPER_HOURS = 200_000, 32, 17  # A.3: the 1B model
PAPER_UNITS = 1e12  # A.3: "about 1 trillion"
PAPER_SPEECH_HOURS = 200_000  # 4.1
PAPER_EPOCHS = 6  # "about 6x", beside the 7B runs
FIGURE_6, TABLE_8 = 49.7, 49.2  # HellaSwag, T->T, of LST at 1:2
PAIRS_SHOWN = 6
FIXED_UNITS = 104_857_600_000  # 524,288 x 200,000 = 4,194,304 x 25,000


_OTHER_LST = (Arm.LST_ALIGNED, Arm.LST_MIXED, Arm.LST_CURRICULUM)


@dataclass(frozen=True)
class View:
    """What a contradiction may look at: a study, its pretraining rows of the first seed, and the paper's statistics."""

    study: StudyConfig
    rows: Sequence[PlanRow]
    paper: StatedStatistics

    @property
    def of_the_paper(self) -> bool:
        return self.study.name.startswith(PAPER_STUDY)

    @property
    def plain(self) -> PlanRow | None:
        """The first baseline."""
        return next((row for row in self.rows if row.arm == Arm.BASELINE), None)

    @property
    def pairs(self) -> list[tuple[PlanRow, PlanRow]]:
        """LST rows with the baseline of their match group."""
        plain = {row.match_group: row for row in self.rows if arm_of(row.arm) is Arm.BASELINE}
        lst = [row for row in self.rows if not arm_of(row.arm).plain]
        return [(row, plain[row.match_group]) for row in lst if row.match_group in plain]

    def has(self, *kinds: Patching) -> bool:
        return any(ARM_PATCHING[arm_of(row.arm)] in kinds for row in self.rows)


@dataclass(frozen=True)
class Contradiction:
    """One gap: its number, the plans it touches, and what it says of them."""

    gap: int
    touches: Callable[[View], bool]
    says: Callable[[View], str]


@dataclass(frozen=True)
class Finding:
    """A contradiction that touches a plan."""

    gap: int
    text: str


def contradictions(plan: Plan) -> list[Finding]:
    """Those that touch the plan, in the order of the gaps."""
    rows = [row for row in plan.rows if row.kind == "pretrain" and row.seed == plan.study.seeds[0]]
    view = View(plan.study, rows, read_stated("paper"))
    return [Finding(c.gap, c.says(view)) for c in CONTRADICTIONS if rows and c.touches(view)]


def _is_1b(view: View) -> bool:
    return view.of_the_paper and any(row.size == "table7_1b" for row in view.rows)


def _units(view: View) -> str:
    row, plain = view.rows[0], view.plain or view.rows[0]
    units = row.units_per_step * PAPER_STEPS
    available = PAPER_HOURS * 3600 * PAPER_GPUS * GPU_PROFILES["h100"].bfloat16
    mfu, other = (plain.planned_flops / plain.units * n / available for n in (units, PAPER_UNITS))
    return (
        f"A.3 calls {PAPER_STEPS:,} steps 'about 1 trillion units', but {row.units_per_step:,} x {PAPER_STEPS:,} = "
        f"{units / 1e12:.3f} trillion; its {PAPER_HOURS} hours on {PAPER_GPUS} H100 would be an MFU of {mfu:.2f} for that "
        f"({plain.arm}, true FLOPs) and of {other:.1f} for a trillion."
    )


def _steps(view: View) -> str:
    row = view.rows[0]
    return (
        f"{row.units / BILLION:.0f}e9 units are {row.units / row.units_per_step:,.0f} steps of {row.units_per_step:,}, as the "
        f"tokens that the paper prints need, while A.3 gives {PAPER_STEPS:,} steps for 'the 1B model'."
    )


def _compute(view: View) -> str:
    parts = []
    for row, plain in view.pairs:
        saved = 1 - row.planned_flops / row.tokens * plain.tokens / plain.planned_flops
        counted = 1 - row.units / row.tokens * plain.tokens / plain.units
        excess = row.planned_flops / row.units * plain.units / plain.planned_flops - 1
        saves = f"{row.arm} {row.size} saves {saved:.1%} at equal data (by units {counted:.1%})"
        parts.append(f"{saves} and spends {excess:+.1%} at equal units")
    shown = "; ".join(parts[:PAIRS_SHOWN])
    more = f"; and {len(parts) - PAIRS_SHOWN} more such pairs" if len(parts) > PAIRS_SHOWN else ""
    return (
        "'compute-controlled' means equal units in the paper; encoder, decoder and head are not counted. In true training FLOPs "
        f"{shown}{more}. A.10 calls the dependence on units quadratic, yet its 19.3% is their linear ratio. `plan-sweep savings` "
        "shows every option."
    )


def _same_tokens(view: View) -> str:
    others = [a for a in accounts(view.study, view.rows) if a.printed.interleaved and a.row.arm in _OTHER_LST]
    own = [f"{a.row.arm} {a.row.interleaved_tokens / BILLION:.1f} + {a.row.text_only_tokens / BILLION:.1f} B" for a in others]
    return (
        "every LST arm stands at 108 + 217 B tokens, which is static's count, yet the others compress otherwise: from their own "
        f"statistics {', '.join(own)}."
    )


def _same_savings(view: View) -> str:
    found = [a for a in accounts(view.study, view.rows) if a.printed.saved is not None and a.units_saved is not None]
    own = [f"{a.row.arm} {a.printed.saved}% (from its statistics {a.units_saved:.1%})" for a in found]
    return (
        f"at equal tokens Table 4 prints different savings, though Table 3 gives all LST arms the same tokens: {', '.join(own)}."
    )


def _epochs(view: View) -> str:
    rows = [row for row in view.rows if row.arm in (Arm.BASELINE, Arm.LST_STATIC, Arm.LST_CURRICULUM)]
    parts = [f"{row.arm} {row.size} {row.speech_epochs:.1f} (passes over the corpus {row.corpus_passes:.1f})" for row in rows[:4]]
    return (
        f"the text says 'about {PAPER_EPOCHS}x' of the speech beside its 7B runs; speech tokens kept over unique ones are "
        f"{', '.join(parts)}."
    )


def _hours(view: View) -> str:
    return f"4.1 gives {PAPER_SPEECH_HOURS:,} hours of speech, Table 1 sums to {sum(view.paper.speech_hours.values()):,.0f}."


def _two_figures(view: View) -> str:
    return (
        f"Figure 6 has {FIGURE_6} for LST at 1:2 (HellaSwag, T->T), Table 8 has {TABLE_8} for the same run: "
        f"{FIGURE_6 - TABLE_8:.1f} points apart."
    )


def _open_shapes(view: View) -> str:
    return (
        "whether the baseline has the global transformer's shape or LST's parameters is not said, nor how sizes count "
        "parameters, their shapes, learning rates and batches (here "
        f"baseline_match={view.study.baseline_match}, recipe '{view.study.recipe.name}')."
    )


def _ladder(view: View) -> str:
    return (
        "whether the arms of Figure 4a share tokens or units is not said, nor whether 'speech 10 x N' means speech tokens or "
        f"interleaved tokens (here matching={view.study.matching.value}, interleaved tokens)."
    )


def _text_part(view: View) -> str:
    parts = [f"{row.arm} {row.text_only_tokens / BILLION:.1f}" for row in view.rows]
    return f"the '70B' of text in Figure 4b are the baseline's; at the same units the arms read B of text: {', '.join(parts)}."


def _draw(view: View) -> str:
    options = view.study.patching
    return (
        "tau 1 and tau 2 are given as thirds alone, and 3.1 and 4.2 differ on whether the patching is drawn per step or per "
        f"sequence (here {options.curriculum_aligned_until:.3g} and {options.curriculum_static_from:.3g}, per {options.draw})."
    )


def _merging(view: View) -> str:
    return "which neighbour a merged silence joins is not said (patching.merge_side)."


def _merged(view: View) -> bool:
    return any(view.study.of_arm(row.arm).patching.silence == "merged" for row in view.rows)


def _items(view: View) -> str:
    return "how many items the evaluations have is not given, so no interval of an accuracy can be checked against the paper's."


def _fixed(view: View) -> bool:
    return view.of_the_paper and any(abs(row.units / FIXED_UNITS - 1) < 1e-6 for row in view.rows)


CONTRADICTIONS: tuple[Contradiction, ...] = (
    Contradiction(1, lambda v: _is_1b(v) and v.study.length is Length.UNITS, _units),
    Contradiction(2, lambda v: _is_1b(v) and v.rows[0].units > 1.01 * v.rows[0].units_per_step * PAPER_STEPS, _steps),
    Contradiction(3, lambda v: bool(v.pairs) and (v.of_the_paper or v.study.matching is Matching.UNIT), _compute),
    Contradiction(4, lambda v: v.study.name == "lst_table3" and any(row.arm in _OTHER_LST for row in v.rows), _same_tokens),
    Contradiction(4, lambda v: v.study.name == "lst_table4" and bool(v.pairs), _same_savings),
    Contradiction(5, lambda v: v.of_the_paper and v.plain is not None, _epochs),
    Contradiction(6, lambda v: v.of_the_paper, _hours),
    Contradiction(6, lambda v: v.study.name in ("lst_figure6", "lst_table8"), _two_figures),
    Contradiction(7, lambda v: bool(v.pairs) and (v.of_the_paper or any(named_count(s) for s in v.study.sizes)), _open_shapes),
    Contradiction(7, lambda v: v.study.length is Length.TOKENS_PER_PARAM, _ladder),
    Contradiction(7, lambda v: _fixed(v) and bool(v.pairs), _text_part),
    Contradiction(9, lambda v: v.has(Patching.CURRICULUM), _draw),
    Contradiction(9, _merged, _merging),
    Contradiction(10, lambda v: v.of_the_paper, _items),
)
"""By gap. 8 (how ending scores are normalised, how local modules work) is a list of choices: `lst.assumptions`."""
