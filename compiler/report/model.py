"""What report.json holds. `Report.model_json_schema()` is its documented schema; units stand in the field names."""

from __future__ import annotations

from math import isinf

from pydantic import BaseModel, ConfigDict, Field

SCHEMA_VERSION = 1

MOVEMENTS = frozenset({"layout", "output"})
"""Operators of steps that belong to no node: they move a value that a node made, or an input."""


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class Resource(_Row):
    """One resource of the target: what the network needs beside what there is."""

    name: str = Field(description="flash, arena, stack or cycles")
    used: int = Field(description="needed amount, in `unit`")
    available: int | None = Field(description="the target's budget in `unit`; null when it sets none")
    unit: str = Field(description="B or cycles")
    basis: str = Field(
        description="how the figure was had: exact (from the plan) or estimated (by the cost model)"
    )

    @property
    def fits(self) -> bool | None:
        """Whether the need is within the budget; None where there is no budget."""
        return None if self.available is None else self.used <= self.available


class Measurement(_Row):
    """A figure measured on data: the spec's metric of one output of one form of the network."""

    stage: str = Field(description="which form: float model, fused, integer")
    metric: str = Field(description="top1, agreement, mse, snr, or the name of the user's function")
    output: str = Field(description="the output that was measured")
    value: float = Field(description="the figure, in `unit`")
    unit: str = Field(description="% or dB, empty for a plain number")
    correct: int | None = Field(default=None, description="right answers, for top1 and agreement")
    samples: int = Field(description="samples measured")

    @property
    def text(self) -> str:
        """The figure with its unit, for people; `exact` where nothing differs from the captured model."""
        if isinf(self.value) and self.unit == "dB":
            return "exact" if self.value > 0 else "no signal"
        return f"{self.value:.2f} {self.unit}" if self.unit else f"{self.value:.4g}"


class Layer(_Row):
    """One step: a node of the compiled graph, or a movement of a value, which belongs to no node."""

    index: int = Field(description="position in execution order")
    name: str = Field(description="name of the node's result, or of the moved value, in the graph text")
    op: str = Field(
        description="operator; `layout`: a conversion of layout, `output`: an output copied to the caller's buffer"
    )
    module: str = Field(description="the user's module path, empty when unknown")
    location: str = Field(description="file:line in the user's model, empty when unknown")
    inputs: tuple[str, ...] = Field(description="names of the values read, constants left out")
    shape: tuple[int, ...] = Field(description="shape of the result")
    type: str = Field(description="type of the result as in the graph text")
    weight_bits: int | None = Field(description="bits of the weight, null without one")
    kernel: str | None = Field(default=None, description="C kernel chosen, null without a C output")
    macs: int = Field(description="multiply-accumulates")
    constant_bytes: int = Field(description="bytes of constants in flash")
    instructions: int | None = Field(default=None, description="estimated instructions on the target")
    cycles: int | None = Field(default=None, description="estimated cycles on the target")
    snr_db: float | None = Field(default=None, description="signal-to-noise ratio of integer against float")


class MemoryBlock(_Row):
    """One tensor or scratch buffer in the arena."""

    name: str = Field(description="value, or scratch of a node")
    offset_bytes: int = Field(description="start within the arena")
    size_bytes: int = Field(description="length")
    first: int = Field(description="index of the first step during which it is live")
    last: int = Field(description="index of the last step during which it is live")


class Decision(_Row):
    """Something that a pass did, or left, and why."""

    rule: str = Field(description="the rule that decided")
    subject: str = Field(description="the value or layer concerned")
    source: str = Field(description="the user's module and line")
    applied: bool = Field(description="true when the rewrite was made")
    reason: str = Field(description="why it was made or left")


class Table(_Row):
    """Figures of a pass in rows."""

    name: str = Field(description="what the table holds")
    columns: tuple[str, ...] = Field(description="names of the columns, units in the name")
    rows: tuple[tuple[str | int | float | bool | None, ...], ...]


class PassSection(_Row):
    """One pass: what it changed and every decision."""

    name: str = Field(description="the pass as named in the spec")
    nodes_before: int
    nodes_after: int
    macs_before: int
    macs_after: int
    summary: str = Field(description="one line")
    decisions: tuple[Decision, ...] = ()
    tables: tuple[Table, ...] = ()


class Report(_Row):
    """Everything about one compilation. Holds no time stamp: equal input gives equal bytes."""

    schema_version: int = SCHEMA_VERSION
    name: str = Field(description="name of the compiled network")
    model: str = Field(description="where the model came from, as in the spec")
    target: str = Field(description="name of the target")
    versions: dict[str, str] = Field(description="versions of fxpress and of what it computes with")
    parameters: int = Field(description="number of constants' elements after compilation")
    macs_before: int = Field(description="multiply-accumulates of the captured model")
    macs_after: int = Field(description="multiply-accumulates of the compiled graph")
    resources: tuple[Resource, ...] = ()
    measurements: tuple[Measurement, ...] = ()
    layers: tuple[Layer, ...] = ()
    arena: tuple[MemoryBlock, ...] = ()
    arena_bound_bytes: int | None = Field(default=None, description="largest sum of tensors live at once")
    passes: tuple[PassSection, ...] = ()
    notes: tuple[str, ...] = Field(default=(), description="things the user should know")
