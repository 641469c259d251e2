"""Memory: order of execution, sharing of buffers, offsets in the arena."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.backends.c.emit import emit
from fxpress.backends.c.plan.memory import Region
from fxpress.backends.c.plan.offsets import Interval, assign_offsets, live_bound
from fxpress.backends.c.plan.schedule import peak_bytes, schedule
from fxpress.ir import parse
from fxpress.specs.outputs import COutput

INTERVALS = st.lists(
    st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(0, 5)).map(
        lambda t: Interval(4 * t[0], t[1], t[1] + t[2])
    ),
    max_size=14,
)


def overlapping(intervals, offsets):
    """Pairs of blocks that live at the same step and share bytes."""
    blocks = list(zip(intervals, offsets, strict=True))
    return [
        (a, b)
        for i, (a, at_a) in enumerate(blocks)
        for b, at_b in blocks[:i]
        if a.start <= b.end and b.start <= a.end and at_a < at_b + b.bytes and at_b < at_a + a.bytes
    ]


@settings(max_examples=200, deadline=None)
@given(INTERVALS)
def test_blocks_that_live_together_do_not_overlap_and_the_peak_is_at_least_the_bound(intervals):
    offsets = assign_offsets(intervals)
    assert not overlapping(intervals, offsets)
    peak = max((at + i.bytes for i, at in zip(intervals, offsets, strict=True)), default=0)
    assert peak >= live_bound(intervals)


def test_overlap_is_found_when_two_live_blocks_share_bytes():
    intervals = [Interval(8, 0, 2), Interval(8, 2, 3)]
    assert overlapping(intervals, [0, 4])
    assert not overlapping(intervals, [0, 8])


def test_the_search_reaches_the_bound_where_placing_by_size_does_not():
    # a classical case: by size alone the fourth block finds no gap below the bound
    intervals = [
        Interval(4, 0, 1),
        Interval(12, 1, 2),
        Interval(8, 2, 3),
        Interval(12, 3, 4),
        Interval(4, 4, 4),
    ]
    offsets = assign_offsets(intervals)
    assert max(at + i.bytes for i, at in zip(intervals, offsets, strict=True)) == live_bound(intervals)


def test_operators_of_every_kind_share_no_live_bytes(operators, host, cortex_m4):
    for target in (host, cortex_m4):
        blocks = emit(operators, COutput(name="net"), target).plan.blocks
        intervals = [Interval(b.bytes, b.start, b.end) for b in blocks]
        assert not overlapping(intervals, [b.offset for b in blocks])


def test_branches_run_in_the_order_that_needs_the_least_memory():
    graph = parse("""graph(%x: f32[1x8]) {
      const %big: f32[1000x8]
      const %small: f32[4x1000]
      %a: f32[1x1000] = linear(%x, %big)
      %b: f32[1x1000] = linear(%x, %big)
      %c: f32[1x4] = linear(%a, %small)
      %d: f32[1x4] = linear(%b, %small)
      %y: f32[1x4] = add(%c, %d)
      return y: %y
    }""")
    ordered = schedule(graph)
    assert [node.output.name for node in ordered.nodes] == ["a", "c", "b", "d", "y"]
    assert peak_bytes(graph, graph.nodes) == 8016
    assert peak_bytes(ordered, ordered.nodes) == 4032


def test_a_result_takes_the_place_of_an_operand_that_dies(fill, host):
    graph = parse(
        """graph(%x: i8[1x64]<scale=0.1, zero=0>) {
          %a: i8[1x64]<scale=0.1, zero=0> = relu(%x)
          %b: i8[1x64]<scale=0.1, zero=0> = tanh(%a)
          %c: i8[1x64]<scale=0.1, zero=0> = add(%b, %b)
          %d: i8[1x64]<scale=0.1, zero=0> = sigmoid(%c)
          return d: %d
        }""",
        fill=fill,
    )
    assert emit(graph, COutput(name="net"), host).plan.arena_bytes == 0  # all of it in the caller's output


def test_a_result_does_not_take_the_place_of_an_operand_that_is_read_later(fill, host):
    graph = parse(
        """graph(%x: i8[1x64]<scale=0.1, zero=0>) {
          %a: i8[1x64]<scale=0.1, zero=0> = relu(%x)
          %b: i8[1x64]<scale=0.1, zero=0> = tanh(%a)
          %c: i8[1x64]<scale=0.1, zero=0> = add(%b, %a)
          %d: i8[1x64]<scale=0.1, zero=0> = sigmoid(%c)
          return d: %d
        }""",
        fill=fill,
    )
    assert emit(graph, COutput(name="net"), host).plan.arena_bytes == 64


def test_reshapes_of_what_lies_in_order_move_nothing(fill, host):
    graph = parse(
        """graph(%x: f32[1x6x4x5]) {
          const %w: f32[3x120]
          %a: f32[1x6x4x5] = relu(%x)
          %b: f32[1x120] = reshape{shape=(-1, 120)}(%a)
          %c: f32[1x3] = linear(%b, %w)
          %d: f32[1x1x3] = reshape{shape=(1, 1, 3)}(%c)
          %e: f32[1x3x1] = permute{order=(0, 2, 1)}(%d)
          return e: %e
        }""",
        fill=fill,
    )
    artifact = emit(graph, COutput(name="net"), host)
    assert b"memcpy(" not in artifact.files["net.c"]
    assert artifact.plan.arena_bytes == 480


def test_parts_of_a_concatenation_are_written_in_place(fill, host):
    graph = parse(
        """graph(%x: f32[1x6]) {
          %a: f32[1x6] = relu(%x)
          %b: f32[1x6] = neg(%x)
          %c: f32[1x12] = concat{axis=1}(%a, %b)
          %d: f32[1x12] = exp(%c)
          return d: %d
        }""",
        fill=fill,
    )
    artifact = emit(graph, COutput(name="net"), host)
    places = {s.value.name: loc for s, loc in artifact.plan.locations.items()}
    assert (places["a"].offset, places["b"].offset) == (0, 24)
    assert places["a"].region is places["b"].region is Region.OUTPUT
    assert b"memcpy(y" not in artifact.files["net.c"]


def test_inputs_and_outputs_take_no_arena(fill, host):
    graph = parse("graph(%x: f32[1x6]) {\n %y: f32[1x6] = relu(%x)\n return y: %y\n}")
    artifact = emit(graph, COutput(name="net"), host)
    assert artifact.plan.arena_bytes == 0
    assert b"arena == NULL" not in artifact.files["net.c"]


def test_a_plan_that_overlaps_is_found_by_comparing_bytes(fill, monkeypatch, assert_equal_to_interpreter):
    graph = parse(
        """graph(%x: i8[1x4x6x6]<scale=0.1, zero=0>) {
          const %w: i8[4x4x3x3]<scale=0.01, zero=0>
          %a: i8[1x4x6x6]<scale=0.1, zero=0> = conv{padding=(1, 1, 1, 1)}(%x, %w)
          %b: i8[1x4x6x6]<scale=0.1, zero=0> = conv{padding=(1, 1, 1, 1)}(%a, %w)
          %c: i8[1x4x6x6]<scale=0.1, zero=0> = conv{padding=(1, 1, 1, 1)}(%b, %w)
          %d: i8[1x4x6x6]<scale=0.1, zero=0> = add(%c, %b)
          %e: i8[1x4x6x6]<scale=0.1, zero=0> = conv{padding=(1, 1, 1, 1)}(%d, %w)
          return e: %e
        }""",
        fill=fill,
    )
    assert_equal_to_interpreter(graph)
    monkeypatch.setattr(
        "fxpress.backends.c.plan.memory.assign_offsets", lambda intervals: [0] * len(intervals)
    )
    with pytest.raises(AssertionError, match="step"):
        assert_equal_to_interpreter(graph)
