"""Order of execution: exact search against all orders, and bounds against plans."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.backends.c import emit
from fxpress.backends.c.lower import lower
from fxpress.backends.c.plan.memory import plan_memory
from fxpress.backends.c.plan.order import Ordered, order_steps
from fxpress.backends.c.plan.order_offsets import refine_order
from fxpress.backends.c.plan.program import Program
from fxpress.backends.c.plan.schedule import peak_bytes, schedule
from fxpress.ir import Graph, parse, verify
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target, Toolchain

HOST = Target(
    name="host", description="a computer", isa="host", toolchain=Toolchain(commands=("gcc",), flags=())
)
MOST_ORDERS = 150


@st.composite
def graphs(draw, most: int = 7) -> Graph:
    """Networks of vectors with branches: layers, functions, sums, parts, views, concatenations, several outputs."""
    lines, constants, widths, read = [], [], {"x": draw(st.integers(1, 4)) * 4}, set()
    for number in range(draw(st.integers(2, most))):
        names = sorted(widths)
        x, other = draw(st.sampled_from(names)), draw(st.sampled_from(names))
        width = widths[x]
        kind = draw(st.sampled_from(["linear", "linear", "tanh", "add", "concat", "slice", "view"]))
        operands = [x]
        if kind == "linear":
            width = draw(st.integers(1, 8)) * 4
            constants.append(f"  const %w{number}: i8[{width}x{widths[x]}]<scale=0.01, zero=0>")
            call = f"linear(%{x}, %w{number})"
        elif kind == "add" and widths[other] == width:
            call, operands = f"add(%{x}, %{other})", [x, other]
        elif kind == "concat" and x != other:
            width += widths[other]
            call, operands = f"concat{{axis=1}}(%{x}, %{other})", [x, other]
        elif kind == "slice" and width > 4:
            width = 4
            call = f"slice{{axis=1, start=4, stop=8}}(%{x})"
        elif kind == "view":
            call = f"reshape{{shape=(1, {width})}}(%{x})"
        else:
            call = f"tanh(%{x})"
        lines.append(f"  %v{number}: i8[1x{width}]<scale=0.1, zero=0> = {call}")
        widths[f"v{number}"] = width
        read.update(operands)
    made = [name for name in widths if name != "x"]
    kept = {name for name in made if name not in read} | set(
        draw(st.lists(st.sampled_from(made), max_size=1))
    )
    outputs = ", ".join(f"{name}: %{name}" for name in sorted(kept))
    head = f"graph(%x: i8[1x{widths['x']}]<scale=0.1, zero=0>) {{"
    text = "\n".join([head, *constants, *lines, f"  return {outputs}", "}"])
    return verify(parse(text, fill=lambda value: torch.ones(value.type.shape, dtype=torch.int8)))


def orders(program: Program) -> Iterator[Program]:
    """The program in every order in which it can run."""
    makers = {stored: step for step in program.steps for stored in step.results}

    def extended(done: tuple, left: list) -> Iterator[tuple]:
        if not left:
            yield done
        for step in left:
            needed = [makers[s] for s in step.operands if s is not None and s in makers]
            if all(any(step is ran for ran in done) for step in needed):
                yield from extended((*done, step), [other for other in left if other is not step])

    for steps in extended((), list(program.steps)):
        yield replace(program, steps=steps)


def given_peak(program: Program, *, ports_in_arena: bool) -> int:
    """The peak of a program in its own order."""
    return order_steps(program, ports_in_arena=ports_in_arena, most_work=0).peak_bytes


@settings(max_examples=120, deadline=None)
@given(graphs(), st.booleans())
def test_the_search_finds_the_least_of_all_orders_and_no_plan_takes_less(graph, ports_in_arena):
    options = COutput(buffers="arena" if ports_in_arena else "caller")
    program = lower(graph, options, HOST).program
    every = []
    for one in orders(program):
        every.append(one)
        if len(every) == MOST_ORDERS:
            return
    peaks = [given_peak(one, ports_in_arena=ports_in_arena) for one in every]
    plans = [plan_memory(one, ports_in_arena=ports_in_arena) for one in every]
    for start in every[:: max(len(every) // 5, 1)]:
        found = order_steps(start, ports_in_arena=ports_in_arena)
        assert found.is_least and found.peak_bytes == found.bound_bytes == min(peaks)
        assert given_peak(found.program, ports_in_arena=ports_in_arena) == min(peaks)
        assert {id(step) for step in found.program.steps} == {id(step) for step in start.steps}
        refined = refine_order(found)
        least = plan_memory(refined.program, ports_in_arena=ports_in_arena).arena_bytes
        assert found.bound_bytes <= refined.bound_bytes <= min(plan.arena_bytes for plan in plans) <= least
        assert least <= plan_memory(found.program, ports_in_arena=ports_in_arena).arena_bytes
    assert all(peak <= plan.bound for peak, plan in zip(peaks, plans, strict=True))


BRANCHES = """graph(%x: i8[1x64]<scale=0.1, zero=0>) {
  const %wide: i8[2048x64]<scale=0.01, zero=0>
  const %wider: i8[2048x64]<scale=0.02, zero=0>
  const %narrow: i8[64x2048]<scale=0.01, zero=0>
  const %last: i8[16x256]<scale=0.01, zero=0>
  %a: i8[1x2048]<scale=0.1, zero=0> = linear(%x, %wide)
  %b: i8[1x2048]<scale=0.1, zero=0> = linear(%x, %wider)
  %c: i8[1x64]<scale=0.1, zero=0> = linear(%a, %narrow)
  %d: i8[1x64]<scale=0.1, zero=0> = linear(%b, %narrow)
  %e: i8[1x2048]<scale=0.1, zero=0> = linear(%c, %wide)
  %f: i8[1x2048]<scale=0.1, zero=0> = linear(%d, %wider)
  %g: i8[1x64]<scale=0.1, zero=0> = linear(%e, %narrow)
  %h: i8[1x64]<scale=0.1, zero=0> = linear(%f, %narrow)
  %j: i8[1x256]<scale=0.1, zero=0> = concat{axis=1}(%c, %g, %d, %h)
  %y: i8[1x16]<scale=0.1, zero=0> = linear(%j, %last)
  return y: %y
}"""


def source_order(graph: Graph, program: Program) -> Program:
    """The program in the order of the graph."""
    names = [node.outputs[0].name for node in graph.nodes]
    return replace(
        program, steps=tuple(sorted(program.steps, key=lambda step: names.index(step.results[0].value.name)))
    )


def test_branches_run_one_after_the_other(fill):
    graph = parse(BRANCHES, fill=fill)
    program = source_order(graph, lower(graph, COutput(), HOST).program)
    found = order_steps(program, ports_in_arena=False)
    assert found.is_least and found.program is not program
    before, after = plan_memory(program), plan_memory(found.program)
    assert after.arena_bytes == found.bound_bytes < before.arena_bytes - 1500
    assert order_steps(found.program, ports_in_arena=False).program is found.program


def test_a_search_that_is_cut_off_keeps_the_order_and_says_so(fill, monkeypatch):
    graph = parse(BRANCHES, fill=fill)
    program = source_order(graph, lower(graph, COutput(), HOST).program)
    cut = order_steps(program, ports_in_arena=False, most_work=3)
    whole = order_steps(program, ports_in_arena=False)
    assert cut.program is program and not cut.is_least
    assert cut.bound_bytes <= whole.bound_bytes < cut.peak_bytes
    monkeypatch.setattr(
        "fxpress.backends.c.lower.order_steps",
        lambda p, **_: Ordered(p, 5000, 4000, (), ports_in_arena=False),
    )
    (note,) = (n for n in emit(graph, COutput(), HOST).notes if n.startswith("order of execution"))
    assert "5,000 B are in use at most" in note and "none needs less than 4,000 B" in note


def test_every_operator_takes_at_least_the_bound(operators, host, cortex_m4):
    for target, buffers in ((host, "caller"), (cortex_m4, "arena")):
        lowered = lower(operators, COutput(buffers=buffers), target)
        assert lowered.order is not None
        assert lowered.order.bound_bytes <= lowered.order.peak_bytes <= lowered.plan.bound


def test_states_in_place_keep_their_order(fill, host):
    graph = parse(BRANCHES.replace("return y: %y", "return y: %y, past: %c"), fill=fill)
    artifact = emit(graph, COutput(states="in_place"), host, states={"x": "past"})
    assert artifact.lowered.order is None


def test_thousands_of_nodes_are_ordered():
    count = 3000
    lines = ["  %v0: f32[1x8] = tanh(%x)"]
    for number in range(1, count):
        lines.append(f"  %v{number}: f32[1x8] = add(%v{number - 1}, %v{number * 3 // 4})")
    graph = parse("\n".join(["graph(%x: f32[1x8]) {", *lines, f"  return y: %v{count - 1}", "}"]))
    ordered = schedule(graph)
    assert sorted(node.output.name for node in ordered.nodes) == sorted(
        node.output.name for node in graph.nodes
    )
    assert peak_bytes(graph, ordered.nodes) <= peak_bytes(graph, graph.nodes)
