"""Outputs that need something after the last node: another layout, or a copy to the caller's buffer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
import torch

from fxpress.backends.c import check
from fxpress.backends.c.emit import CArtifact
from fxpress.ir import Graph, Value, parse
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

CASES = {
    "sequence": """graph(%x: i8[1x3x9]<scale=0.1, zero=0>) {
      const %w: i8[5x3x3]<scale=0.01, zero=0>
      %y: i8[1x5x7]<scale=0.1, zero=0> = conv{stride=(1), padding=(0, 0), dilation=(1)}(%x, %w)
      return y: %y
    }""",
    "sequence in float": """graph(%x: f32[1x3x9]) {
      const %w: f32[5x3x3]
      %y: f32[1x5x7] = conv{stride=(1), padding=(0, 0), dilation=(1)}(%x, %w)
      return y: %y
    }""",
    "planes": """graph(%x: i8[1x3x5x4]<scale=0.1, zero=0>) {
      const %w: i8[4x3x3x3]<scale=0.01, zero=0>
      %y: i8[1x4x3x2]<scale=0.1, zero=0> = conv(%x, %w)
      return y: %y
    }""",
    "moved": """graph(%x: f32[1x3x5x4]) {
      const %w: f32[4x3x3x3]
      %c: f32[1x4x3x2] = conv(%x, %w)
      %y: f32[1x3x2x4] = permute{order=(0, 2, 3, 1)}(%c)
      %z: f32[2x3x4x1] = permute{order=(3, 2, 1, 0)}(%c)
      return y: %y, z: %z
    }""",
    "five dimensions": """graph(%x: f32[1x3x5x4]) {
      const %w: f32[4x3x3x3]
      %c: f32[1x4x3x2] = conv(%x, %w)
      %y: f32[1x2x2x3x2] = reshape{shape=(1, 2, 2, 3, 2)}(%c)
      return y: %y
    }""",
    "one dimension": """graph(%x: f32[1x3x5x4]) {
      const %w: f32[4x3x3x3]
      %c: f32[1x4x3x2] = conv(%x, %w)
      %y: f32[24] = reshape{shape=(24)}(%c)
      return y: %y
    }""",
    "an input": """graph(%x: f32[1x3x2x4]) {
      return y: %x, z: %x
    }""",
    "a sequence that is an input": """graph(%x: i8[1x3x9]<scale=0.1, zero=0>) {
      const %w: i8[5x3x3]<scale=0.01, zero=0>
      %c: i8[1x5x7]<scale=0.1, zero=0> = conv{stride=(1), padding=(0, 0), dilation=(1)}(%x, %w)
      return x: %x, y: %c, again: %c
    }""",
    "twice": """graph(%x: i8[1x3x5x4]<scale=0.1, zero=0>) {
      const %w: i8[4x3x3x3]<scale=0.01, zero=0>
      %y: i8[1x4x3x2]<scale=0.1, zero=0> = conv(%x, %w)
      return y: %y, z: %y, again: %y
    }""",
    "a constant": """graph(%x: f32[1x4]) {
      const %k: f32[1x3x2x4]
      const %l: f32[2x3x4]
      const %m: i8[4]<scale=0.1, zero=3>
      %y: f32[1x4] = relu(%x)
      return k: %k, again: %k, l: %l, m: %m, y: %y
    }""",
    "a slice before other steps": """graph(%x: i8[1x40]<scale=0.1, zero=0>) {
      const %w: i8[40x40]<scale=0.01, zero=0>
      %a: i8[1x40]<scale=0.1, zero=0> = linear(%x, %w)
      %part: i8[1x12]<scale=0.1, zero=0> = slice{axis=1, start=8, stop=20}(%a)
      %b: i8[1x40]<scale=0.1, zero=0> = linear(%a, %w)
      %c: i8[1x40]<scale=0.1, zero=0> = linear(%b, %w)
      %d: i8[1x40]<scale=0.1, zero=0> = linear(%c, %w)
      return part: %part, d: %d
    }""",
    "halves": """graph(%x: f32[1x8]) {
      const %w: f32[8x8]
      %a: f32[1x8] = linear(%x, %w)
      %left: f32[1x4] = slice{axis=1, start=0, stop=4}(%a)
      %right: f32[1x4] = slice{axis=1, start=4, stop=8}(%a)
      %s: f32[1x4] = add(%left, %right)
      %t: f32[1x4] = exp(%s)
      return left: %left, right: %right, t: %t
    }""",
    "a state": """graph(%x: f32[1x3x1], %state: f32[1x3x2]) {
      const %w: f32[3x3x3]
      %seen: f32[1x3x3] = concat{axis=2}(%state, %x)
      %next: f32[1x3x2] = slice{axis=2, start=1, stop=3}(%seen)
      %y: f32[1x3x1] = conv{stride=(1), padding=(0, 0), dilation=(1)}(%seen, %w)
      return y: %y, next: %next
    }""",
}
PLANES = {
    f"{case}: {name}": "nchw"
    for case, names in {
        "planes": "y",
        "moved": "z",
        "an input": "z",
        "twice": "z",
        "a constant": ["again"],
    }.items()
    for name in names
}

Check = Callable[..., CArtifact]


@pytest.mark.parametrize(
    ("machine", "buffers"), [("host", "caller"), ("cortex_m4", "caller"), ("host", "arena")]
)
def test_every_output_holds_the_values_of_the_interpreter(
    machine: str,
    buffers: Literal["caller", "arena"],
    join: Callable[[dict[str, str]], Graph],
    assert_equal_to_interpreter: Check,
    request: pytest.FixtureRequest,
) -> None:
    graph, target = join(CASES), request.getfixturevalue(machine)
    options = COutput(name="net", layouts=PLANES, buffers=buffers)
    assert not check(graph, options, target)
    artifact = assert_equal_to_interpreter(graph, options=options, target=target, seeds=2)
    steps = [step.operator for step in artifact.program.steps] + ["output" for _ in artifact.plan.returned]
    assert [node.operator for node in artifact.prediction.nodes] == steps


def test_a_conversion_after_the_last_node_costs_time_and_belongs_to_none(
    assert_equal_to_interpreter: Check, fill: Callable[[Value], torch.Tensor], cortex_m4: Target
) -> None:
    graph = parse(CASES["sequence"], fill=fill)
    artifact = assert_equal_to_interpreter(graph, target=cortex_m4)
    last, cost = artifact.program.steps[-1], artifact.prediction.nodes[-1]
    assert (last.node, last.operator, last.macs) == (None, "layout", 0)
    assert (cost.operator, cost.result, cost.kernel) == ("layout", "y", "convert_layout")
    assert cost.time > 35  # at least one for each of 5 x 7 elements


def test_a_slice_of_a_value_is_kept_until_it_is_copied_out(
    assert_equal_to_interpreter: Check, fill: Callable[[Value], torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = parse(CASES["a slice before other steps"], fill=fill)
    artifact = assert_equal_to_interpreter(graph)
    assert [stored.value.name for stored, _ in artifact.plan.returned] == ["part"]
    monkeypatch.setattr("fxpress.backends.c.plan.memory._last_reads", _reads_of_nodes_alone)
    with pytest.raises(AssertionError, match="part"):
        assert_equal_to_interpreter(graph)


def _reads_of_nodes_alone(program):
    """The planted fault: outputs are forgotten among the readers of a value."""
    return {stored: number for number, step in enumerate(program.steps) for stored in step.operands if stored}
