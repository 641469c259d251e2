"""Contents of report.json. `Report.model_json_schema()` is its schema; field names contain the units."""

from __future__ import annotations

from math import isinf
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MOVEMENTS = frozenset({"layout", "output"})
"""Operators of steps without a node: they move the result of a node, or an input."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Resource(_Row):
    """One resource of the target: needed and available amount."""

    name: str = Field(
        description="flash, arena or the regions of RAM, stack, instructions, cycles or wait cycles"
    )
    used: int = Field(description="needed amount, in `unit`")
    available: int | None = Field(description="the target's budget in `unit`; null without a budget")
    unit: str = Field(description="B, instructions or cycles")
    basis: str = Field(
        description="origin of the figure: exact (from the plan) or estimated (by the cost model)"
    )

    @property
    def fits(self) -> bool | None:
        """True if the need is within the budget; None without a budget."""
        return None if self.available is None else self.used <= self.available


class Measurement(_Row):
    """A figure measured on data: the spec's metric of one output of one form of the network."""

    stage: str = Field(description="form of the network: float model, fused, integer")
    metric: str = Field(description="top1, agreement, mse, snr, or the name of the user's function")
    output: str = Field(description="the output that was measured")
    value: float = Field(description="the figure, in `unit`")
    unit: str = Field(description="% or dB, empty for a plain number")
    correct: int | None = Field(default=None, description="number of correct answers, for top1 and agreement")
    compared: int | None = Field(
        default=None,
        description="number of compared answers: one for each sample, or for each of its positions",
    )
    samples: int = Field(description="number of measured samples")

    @property
    def text(self) -> str:
        """The figure with its unit, for display; `exact` if nothing differs from the captured model."""
        if isinf(self.value) and self.unit == "dB":
            return "exact" if self.value > 0 else "no signal"
        return f"{self.value:.2f} {self.unit}" if self.unit else f"{self.value:.4g}"


class RowRun(_Row):
    """Steps that run together, some rows at a time."""

    first: int = Field(description="index of the first step")
    last: int = Field(description="index of the last step")
    end: str = Field(description="why the step behind the last one does not run with them")


class Layer(_Row):
    """One step: a node of the compiled graph, or a movement of a value, which has no node."""

    index: int = Field(description="position in execution order")
    name: str = Field(description="name of the node's result, or of the moved value, in the graph text")
    op: str = Field(
        description="operator; `layout`: a conversion of layout, `output`: an output copied to the caller's buffer"
    )
    module: str = Field(description="the user's module path, empty if unknown")
    location: str = Field(description="file:line in the user's model, empty if unknown")
    inputs: tuple[str, ...] = Field(description="names of the operands, without constants")
    shape: tuple[int, ...] = Field(description="shape of the result")
    type: str = Field(description="type of the result as in the graph text")
    weight_bits: int | None = Field(description="bits of the weight, null without a weight")
    kernel: str | None = Field(default=None, description="C kernel chosen, null without a C output")
    macs: int = Field(description="multiply-accumulates")
    constant_bytes: int = Field(description="bytes of constants in flash")
    instructions: int | None = Field(default=None, description="estimated instructions on the target")
    cycles: int | None = Field(
        default=None, description="estimated cycles on the target; null where its timing is not published"
    )
    snr_db: float | None = Field(default=None, description="signal-to-noise ratio of integer against float")
    rows: RowRun | None = Field(
        default=None, description="steps with which it runs some rows at a time; null where it runs alone"
    )

    @property
    def time(self) -> int | None:
        """Cycles, or instructions if the core has no published timing."""
        return self.instructions if self.cycles is None else self.cycles


class FloatLayer(_Row):
    """A layer with a large share of the work that stays in float although the network is quantized."""

    name: str = Field(description="name of its result")
    op: str = Field(description="operator")
    module: str = Field(description="the user's module path, empty if unknown")
    location: str = Field(description="file:line in the user's model, empty if unknown")
    macs_percent: float = Field(description="its share of the multiply-accumulates")
    time_percent: float | None = Field(
        description="its share of the estimated cycles, or of the instructions without published timing; null "
        "without a C output"
    )
    flash_percent: float | None = Field(
        description="its share of the estimated flash; null without a C output"
    )
    reason: str = Field(description="reason why it stays in float")


class OutputRatio(_Row):
    """Difference between an integer graph's output and the float graph's; for integers, the number that differ."""

    name: str = Field(description="name of the output")
    snr_db: float | None = Field(description="signal-to-noise ratio; null without noise, or without signal")
    signal: float = Field(description="sum of squares of the float output; for integers, their number")
    noise: float = Field(description="sum of squares of the difference; for integers, the number that differ")
    least_db: float | None = Field(description="least ratio of the spec; null without one")
    is_low: bool = Field(description="true if the ratio is below it")


class LowLayer(_Row):
    """A layer whose result is below the least ratio, and whose noise reaches an output."""

    name: str = Field(description="name of its result")
    module: str = Field(description="the user's module path, empty if unknown")
    snr_db: float | None = Field(description="signal-to-noise ratio; null without signal")
    output: str = Field(description="the output that its noise affects most")


class Effect(_Row):
    """Effect of a change at one output or layer."""

    at: str = Field(description="the output or layer at which it was measured")
    snr_db_before: float | None = Field(
        description="ratio there without the change; null without noise or signal"
    )
    snr_db_after: float | None = Field(
        description="ratio there with the change; null without noise or signal"
    )
    helps: bool = Field(description="true for a gain of at least 3 dB, or if the change is enough")
    is_enough: bool = Field(description="true if the ratio is then no longer low")


class TriedChange(_Row):
    """A change that was tried against noise: its effect and its cost."""

    change: str = Field(
        description="settings in the form of the spec, or a description of a change in the model"
    )
    settings: dict[str, str] = Field(
        description="settings of the spec with the change, by option of `quantize` or by path "
        "(`data.calibration.exclude`)"
    )
    is_of_spec: bool = Field(description="true if the settings are the complete change")
    effects: tuple[Effect, ...] = Field(description="effects at each low output, or else layer")
    flash_bytes: int | None = Field(default=None, description="predicted additional flash; null if unknown")
    instructions: int | None = Field(
        default=None, description="predicted additional instructions; null if unknown"
    )
    cycles: int | None = Field(default=None, description="predicted additional cycles; null if unknown")

    @property
    def helps(self) -> bool:
        """True if it helps anywhere."""
        return any(effect.helps for effect in self.effects)

    @property
    def is_enough(self) -> bool:
        """True if nothing is low with the change."""
        return all(effect.is_enough for effect in self.effects)


class NoiseSource(_Row):
    """A value whose own noise causes a low ratio: the noise that quantization adds there to exact operands."""

    name: str = Field(description="name of the value in the graph text")
    op: str = Field(description="operator that computes it")
    module: str = Field(description="the user's module path, empty if unknown")
    location: str = Field(description="file:line in the user's model, empty if unknown")
    at: str = Field(description="the output or layer whose ratio is low")
    share_percent: float = Field(description="share of this source alone in the noise there")
    snr_db: float | None = Field(description="ratio of the value to its own noise")
    reasons: tuple[str, ...] = Field(description="reasons for its noise")


class Noise(_Row):
    """Signal-to-noise ratios of the outputs and, for low ones, the causes and changes that help."""

    samples: int = Field(description="number of measured calibration samples")
    outputs: tuple[OutputRatio, ...] = ()
    sequences: tuple[OutputRatio, ...] = Field(
        default=(),
        description="the outputs of a model with states along sequences, where each call takes the states of the "
        "previous integer call",
    )
    low_layers: tuple[LowLayer, ...] = ()
    sources: tuple[NoiseSource, ...] = ()
    changes: tuple[TriedChange, ...] = Field(
        default=(), description="changes that were tried, the best first"
    )

    @property
    def is_low(self) -> bool:
        """True if an output, or a layer whose noise reaches one, is below the least ratio."""
        return bool(self.low_layers) or any(output.is_low for output in (*self.outputs, *self.sequences))


class MemoryBlock(_Row):
    """One tensor or scratch buffer in the arena."""

    name: str = Field(description="value, or scratch memory of a node")
    region: str = Field(default="arena", description="region of RAM")
    offset_bytes: int = Field(description="start within the region")
    size_bytes: int = Field(description="length")
    first: int = Field(description="index of the first step during which it is live")
    last: int = Field(description="index of the last step during which it is live")


class RamPoint(_Row):
    """A point of the Pareto front of RAM and time: the C in so much RAM, in the least time that was found."""

    ram_bytes: int = Field(description="arena, or the regions of RAM together")
    region_bytes: dict[str, int] = Field(description="each region of RAM; empty where the target names none")
    instructions: int = Field(description="estimated instructions on the target")
    cycles: int | None = Field(
        description="estimated cycles on the target; null where its timing is not published"
    )
    flash_bytes: int = Field(description="estimated flash")
    rows: tuple[tuple[int, int], ...] = Field(
        description="first and last step of each run of layers that compute some rows at a time"
    )

    @property
    def time(self) -> int:
        """Cycles, or instructions where the core has no cycles."""
        return self.instructions if self.cycles is None else self.cycles

    @property
    def unit(self) -> str:
        """The unit of `time`."""
        return "instructions" if self.cycles is None else "cycles"


class Decision(_Row):
    """A rewrite or choice of a pass, whether it was applied, and why."""

    rule: str = Field(description="the rule of the decision")
    subject: str = Field(description="the value or layer concerned")
    source: str = Field(description="the user's module and line")
    applied: bool = Field(description="true if the rewrite was applied")
    reason: str = Field(description="reason")


class Table(_Row):
    """A table of a pass."""

    name: str = Field(description="title of the table")
    columns: tuple[str, ...] = Field(description="names of the columns, units in the name")
    rows: tuple[tuple[str | int | float | bool | None, ...], ...]


class PassSection(_Row):
    """One pass: its changes and all decisions."""

    name: str = Field(description="the pass as named in the spec")
    nodes_before: int
    nodes_after: int
    macs_before: int
    macs_after: int
    summary: str = Field(description="one line")
    decisions: tuple[Decision, ...] = ()
    tables: tuple[Table, ...] = ()


class Report(_Row):
    """All facts about one compilation. It has no time stamp: equal input gives equal bytes."""

    schema_version: Literal[1] = 1
    name: str = Field(description="name of the compiled network")
    model: str = Field(description="source of the model, as in the spec")
    target: str = Field(description="name of the target")
    versions: dict[str, str] = Field(description="versions of fxpress and of the packages that compute")
    parameters: int = Field(description="number of elements of all constants after compilation")
    macs_before: int = Field(description="multiply-accumulates of the captured model")
    macs_after: int = Field(description="multiply-accumulates of the compiled graph")
    resources: tuple[Resource, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    layers: tuple[Layer, ...] = ()
    noise: Noise | None = Field(
        default=None, description="null without quantization, or if training follows it"
    )
    float_layers: tuple[FloatLayer, ...] = ()
    arena: tuple[MemoryBlock, ...] = ()
    arena_bound_bytes: int | None = Field(default=None, description="least bytes of tensors live at once")
    arena_is_least: bool | None = Field(
        default=None, description="true if no other offsets of the blocks need fewer bytes"
    )
    arena_order_is_least: bool | None = Field(
        default=None,
        description="true if it is proven that no order of execution and no offsets need fewer bytes",
    )
    arena_order_bound_bytes: int | None = Field(
        default=None,
        description="proven lower bound in bytes for any order of execution; null with states in place",
    )
    pareto: tuple[RamPoint, ...] = Field(
        default=(),
        description="RAM and time of other plans, the fastest first; where `outputs.c.pareto` asks",
    )
    passes: tuple[PassSection, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="notes for the user")
