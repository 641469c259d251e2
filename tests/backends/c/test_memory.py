"""Memory: order of execution, sharing of buffers, offsets in the arena."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.backends.c.emit import emit
from fxpress.backends.c.plan.memory import Storage
from fxpress.backends.c.plan.offsets import Interval, Offsets, assign_offsets, live_bound
from fxpress.backends.c.plan.schedule import peak_bytes, schedule
from fxpress.ir import parse
from fxpress.specs.outputs import COutput


@st.composite
def blocks(draw, most=14):
    """Blocks, and results among them that follow an operand."""
    sizes = st.tuples(st.integers(1, 40), st.integers(0, 12), st.integers(0, 5))
    intervals = [
        Interval(4 * size, at, at + length) for size, at, length in draw(st.lists(sizes, max_size=most))
    ]
    pairs = [
        (i, j)
        for i, result in enumerate(intervals)
        for j, operand in enumerate(intervals)
        if i != j and result.start == operand.end and operand.start < operand.end < result.end
    ]
    followed = draw(st.lists(st.sampled_from(pairs), max_size=4, unique=True)) if pairs else []
    return intervals, {pair: 4 * draw(st.integers(0, 30)) for pair in followed}


def overlapping(intervals, offsets, follows):
    """Pairs of blocks that live at the same step and share bytes that they must not share."""
    found = []
    for (i, a), (j, b) in itertools.combinations(enumerate(intervals), 2):
        if not a.meets(b):
            continue
        is_apart = offsets[i] >= offsets[j] + b.bytes or offsets[j] >= offsets[i] + a.bytes
        is_followed = any(
            pair in follows and offsets[pair[1]] >= offsets[pair[0]] + follows[pair]
            for pair in ((i, j), (j, i))
        )
        if not is_apart and not is_followed:
            found.append((a, b))
    return found


@settings(max_examples=200, deadline=None)
@given(blocks())
def test_blocks_that_live_together_share_no_bytes_but_those_that_follow(case):
    intervals, follows = case
    offsets = assign_offsets(intervals, follows)
    assert not overlapping(intervals, offsets.at, follows)
    assert offsets.peak == max((at + i.bytes for i, at in zip(intervals, offsets.at, strict=True)), default=0)
    assert offsets.peak >= live_bound(intervals, follows)


@settings(max_examples=60, deadline=None)
@given(blocks(most=5))
def test_offsets_that_are_called_the_least_are_the_least_of_all(case):
    intervals, follows = case
    offsets = assign_offsets(intervals, follows)
    assert offsets.is_least
    if not intervals:
        return
    places = range(0, offsets.peak, 4)
    lower = (
        at
        for at in itertools.product(places, repeat=len(intervals))
        if all(start + i.bytes < offsets.peak for start, i in zip(at, intervals, strict=True))
    )
    assert all(overlapping(intervals, at, follows) for at in itertools.islice(lower, 5_000))


def test_overlap_is_found_when_two_live_blocks_share_bytes():
    intervals = [Interval(8, 0, 2), Interval(8, 2, 3)]
    assert overlapping(intervals, [0, 4], {})
    assert not overlapping(intervals, [0, 8], {})
    assert not overlapping(intervals, [4, 0], {(1, 0): 4})
    assert overlapping(intervals, [4, 0], {(1, 0): 8})


def test_the_search_reaches_the_bound_where_placing_by_size_does_not():
    # a classical case: by size alone the fourth block finds no gap below the bound
    intervals = [
        Interval(4, 0, 1),
        Interval(12, 1, 2),
        Interval(8, 2, 3),
        Interval(12, 3, 4),
        Interval(4, 4, 4),
    ]
    assert assign_offsets(intervals, {}).peak == live_bound(intervals, {})


def test_operators_of_every_kind_share_no_live_bytes(operators, host, cortex_m4):
    for target in (host, cortex_m4):
        plan = emit(operators, COutput(name="net"), target).plan
        intervals = [Interval(b.bytes, b.start, b.end) for b in plan.blocks]
        shared = overlapping(intervals, [b.offset for b in plan.blocks], {})
        assert all(a.start == b.end or b.start == a.end for a, b in shared)  # a result over its operand


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
    assert places["a"].storage is places["b"].storage is Storage.OUTPUT
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
        "fxpress.backends.c.plan.regions.assign_offsets",
        lambda intervals, follows: Offsets(
            (0,) * len(intervals), max(i.bytes for i in intervals), is_least=False
        ),
    )
    with pytest.raises(AssertionError, match="step"):
        assert_equal_to_interpreter(graph)
