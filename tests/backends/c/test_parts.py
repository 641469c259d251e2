"""Runs in parts: a bounded number of steps at a time, several runs under way at once."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.tools.simulate import Simulator
from fxpress.backends.c.tools.simulated_network import SimulatedNetwork
from fxpress.backends.c.tools.stack import worst_case_stack
from fxpress.backends.c.tools.toolchain import (
    SANITIZERS,
    WARNINGS,
    build_image,
    check_header,
    compile_objects,
    find_compiler,
    link_program,
    link_shared,
    target_compiler,
)
from fxpress.backends.c.write.ports import to_memory
from fxpress.ir import Graph, parse, run_integer
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput

NET = """graph(%x: i8[1x3x8x8]<scale=0.1, zero=2>) {
  const %w: i8[8x3x3x3]<scale=0.02, zero=0>
  const %u: i8[8x8x3x3]<scale=0.02, zero=0>
  const %v: i8[10x512]<scale=0.02, zero=0>
  %a: i8[1x8x8x8]<scale=0.2, zero=-5> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w)
  %b: i8[1x8x8x8]<scale=0.2, zero=-5> = conv{padding=(1, 1, 1, 1)}(%a, %u)
  %s: i8[1x8x8x8]<scale=0.2, zero=-5> = add(%a, %b)
  %t: i8[1x8x8x8]<scale=0.0078125, zero=0> = tanh(%s)
  %r: i8[1x512]<scale=0.0078125, zero=0> = reshape{shape=(-1, 512)}(%t)
  %y: i8[1x10]<scale=0.05, zero=0> = linear(%r, %v)
  return y: %y
}"""
RING = (Path(__file__).parent / "golden" / "ring.graph").read_text(encoding="utf-8")
PARTS = COutput(name="net", execution="parts", self_test=0)
PROGRESS_BYTES = 64
STACK_CASES = [("cortex-m0plus", "-O2"), ("cortex-m4f", "-O3"), ("riscv32", "-Os")]
SLOW_STACK_CASES = [pytest.param(*case, marks=pytest.mark.slow) for case in STACK_CASES[:2]]


class Caller:
    """One caller on the simulated core: its buffers, its arena and the progress of its run."""

    def __init__(self, core: Simulator, artifact: CArtifact, x: torch.Tensor) -> None:
        self.core, self.artifact, self.output = core, artifact, artifact.ports[-1]
        self.x = core.place(to_memory(x, artifact.ports[0].stored).tobytes(), alignment=8)
        self.y = core.allocate(self.output.stored.bytes)
        self.arena = core.allocate(artifact.plan.arena_bytes)
        self.progress = core.allocate(PROGRESS_BYTES)
        (expected,) = run_integer(artifact.graph, [x])
        self.expected = to_memory(expected, self.output.stored).tobytes()

    def begin(self) -> int:
        given = (self.progress, self.x, self.y, self.arena)
        return self.core.call(f"{self.artifact.name}_begin", *given).return_value

    def go_on(self, steps: int) -> int:
        return self.core.call(f"{self.artifact.name}_continue", self.progress, steps).return_value

    @property
    def found(self) -> bytes:
        return self.core.read(self.y, len(self.expected))


@pytest.fixture
def callers(fill, draw, tmp_path) -> list[Caller]:
    """Two callers of one network on a simulated Cortex-M4."""
    target = load_target("cortex-m4f")
    if shutil.which(target.toolchain.commands[0]) is None:
        pytest.skip(f"{target.toolchain.commands[0]} is not installed")
    graph = parse(NET, fill=fill)
    artifact = emit(graph, PARTS, target)
    keep = ("net_begin", "net_continue", "net_run")
    image = build_image(target_compiler(target), artifact.write(tmp_path), tmp_path / "net.elf", keep=keep)
    core = Simulator(image, target=target)
    return [Caller(core, artifact, draw(graph.inputs[0], seed)) for seed in range(2)]


@pytest.mark.parametrize("budgets", [(1,), (2, 1), (3,), (1000,), (0, 1, -5)])
def test_a_run_in_parts_gives_the_bytes_of_a_whole_run(budgets, callers):
    caller, whole = callers[0], int(callers[0].artifact.macros["NET_STEPS"])
    assert whole == 5  # the reshape computes nothing
    assert caller.begin() == 0
    left, calls = whole, 0
    while left:
        budget = budgets[calls % len(budgets)]
        after = caller.go_on(budget)
        assert after == max(left - max(budget, 0), 0)
        assert after == 0 or caller.found != caller.expected
        left, calls = after, calls + 1
    assert caller.found == caller.expected
    assert caller.go_on(1) == 0 and caller.found == caller.expected
    passed = (caller.x, caller.y, caller.arena)
    caller.core.write(caller.y, bytes(len(caller.expected)))
    assert caller.core.call("net_run", *passed).return_value == 0
    assert caller.found == caller.expected


def test_two_runs_under_way_do_not_see_each_other(callers):
    first, second = callers
    assert first.expected != second.expected
    assert first.begin() == second.begin() == 0
    left = [1, 1]
    while any(left):
        left = [first.go_on(1), second.go_on(2)]
    assert first.found == first.expected and second.found == second.expected


def test_an_abandoned_run_begins_again(callers):
    caller, other = callers
    assert caller.begin() == 0 and caller.go_on(3) == 2
    caller.core.write(caller.arena, bytes(caller.artifact.plan.arena_bytes))  # another network used it
    assert caller.begin() == 0 and caller.go_on(5) == 0
    assert caller.found == caller.expected
    assert other.core.call("net_continue", 0, 1).return_value == -1
    for position in range(4):
        given = [other.progress, other.x, other.y, other.arena]
        given[position] = 0
        assert other.core.call("net_begin", *given).return_value == 1
    assert other.core.call("net_begin", other.progress, other.x, other.y, other.arena + 1).return_value == 2


def test_states_in_place_and_weights_in_a_file_run_in_parts(fill, draw, tmp_path, host):
    options = {"states": "in_place", "layouts": {"past": "ntc", "past_out": "ntc"}, "weights_file": "binary"}
    graph = parse(RING, fill=fill)
    artifact = emit(graph, PARTS.model_copy(update=options), host, states={"past": "past_out"})
    flags = ("-O1", *WARNINGS)
    library = ctypes.CDLL(
        str(link_shared(find_compiler("gcc"), artifact.write(tmp_path), tmp_path / "net.so", flags=flags))
    )
    contents = np.frombuffer(artifact.files["net_weights.bin"], np.uint8)

    def aligned(size: int) -> np.ndarray:
        room = np.zeros(size + 64, np.uint8)
        return room[-room.ctypes.data % 64 :][:size]

    weights, arena = aligned(len(contents)), aligned(artifact.plan.arena_bytes)
    weights[:] = contents
    states = [aligned(artifact.plan.state_bytes) for _ in range(2)]
    results = [np.zeros(artifact.ports[2].type.numel, np.int8) for _ in range(2)]
    progress = np.zeros(PROGRESS_BYTES * 2, np.uint8)
    for state in states:
        assert library.net_reset(ctypes.c_void_p(state.ctypes.data)) == 0
    for call in range(5):
        x = to_memory(draw(graph.inputs[0], call), artifact.ports[0].stored)
        whole, parts = (
            [ctypes.c_void_p(a.ctypes.data) for a in (x, state, y, weights, arena)]
            for state, y in zip(states, results, strict=True)
        )
        assert library.net_step(*whole) == 0
        place = ctypes.c_void_p(progress.ctypes.data)
        assert library.net_begin(place, *parts) == 0
        while library.net_continue(place, 1):
            pass
        assert np.array_equal(*results) and np.array_equal(*states)
    assert int(artifact.macros["NET_STEPS"]) > 1 and results[0].any()
    weights[0] ^= 1
    assert library.net_begin(place, *parts) == library.net_step(*whole) == 3


@pytest.mark.parametrize("buffers", ["caller", "arena"])
def test_every_operator_in_parts_computes_what_the_interpreter_does(
    buffers, operators, assert_equal_to_interpreter, cortex_m4
):
    options = PARTS.model_copy(update={"buffers": buffers})
    assert_equal_to_interpreter(operators, options=options, target=cortex_m4, seeds=1, flags=("-O1",))


@pytest.mark.parametrize(("cpu", "optimization"), [*SLOW_STACK_CASES, STACK_CASES[2]])
def test_the_stack_macro_bounds_a_run_in_parts(
    cpu, optimization, integer_operators, cortex_m4, host, tmp_path, compiler
):
    target = cortex_m4 if cpu == "cortex-m4f" else host
    artifact = emit(integer_operators, PARTS, target)
    flags = (optimization, *WARNINGS)
    objects = compile_objects(compiler(cpu), artifact.write(tmp_path), tmp_path, flags=flags)
    assert worst_case_stack(objects, "net_run") <= int(artifact.macros["NET_STACK_BYTES"])


@pytest.mark.parametrize(("cpu", "optimization"), STACK_CASES)
def test_the_stack_macro_bounds_a_small_run_in_parts(cpu, optimization, fill, tmp_path, compiler):
    artifact = emit(parse(NET, fill=fill), PARTS, load_target(cpu))
    objects = compile_objects(compiler(cpu), artifact.write(tmp_path), tmp_path, flags=(optimization,))
    stated = int(artifact.macros["NET_STACK_BYTES"])
    for function in ("net_run", "net_begin", "net_continue"):
        assert worst_case_stack(objects, function) <= stated


@pytest.mark.parametrize("name", ["g++", "clang++"])
def test_the_header_of_a_run_in_parts_stands_alone_in_cpp(name, operators, host, tmp_path, compiler):
    emit(operators, PARTS, host).write(tmp_path)
    check_header(compiler(name), tmp_path / "net.h")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("clang", marks=pytest.mark.slow),
        pytest.param("cortex-m0plus", marks=pytest.mark.slow),
        "riscv32",
    ],
)
def test_parts_compile_without_a_warning(name, integer_operators, host, tmp_path, compiler):
    sources = emit(integer_operators, PARTS, host).write(tmp_path)
    compile_objects(compiler(name), sources, tmp_path, flags=("-O1", *WARNINGS))


def test_the_self_test_of_a_run_in_parts_passes_under_sanitizers(fill, draw, cortex_m4, tmp_path):
    graph = parse(NET, fill=fill)
    options = PARTS.model_copy(update={"self_test": 2})
    artifact = emit(
        graph, options, cortex_m4, vectors=[[draw(v, seed) for v in graph.inputs] for seed in range(2)]
    )
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    flags = ("-O1", "-DNET_TEST_MAIN", *WARNINGS, *SANITIZERS)
    program = link_program(find_compiler("gcc"), sources, tmp_path / "test", flags=flags)
    assert subprocess.run([program], capture_output=True, check=False).returncode == 0


def test_the_longest_step_is_stated_where_it_is_estimated(fill, draw, tmp_path):
    graph = parse(NET, fill=fill)
    longest = {}
    for name in ("cortex-m4f", "cortex-m55", "host"):
        artifact = emit(graph, PARTS, load_target(name))
        longest[name] = {key: value for key, value in artifact.macros.items() if "LONGEST" in key}
        times = [node.time for node in artifact.prediction.nodes]
        assert all(value == str(max(times)) for value in longest[name].values())
    assert list(longest["cortex-m4f"]) == ["NET_LONGEST_STEP_CYCLES"]
    assert list(longest["cortex-m55"]) == ["NET_LONGEST_STEP_INSTRUCTIONS"]


def test_the_estimate_of_the_longest_step_is_near_what_the_core_takes(fill, draw, tmp_path):
    target = load_target("cortex-m4f")
    if shutil.which(target.toolchain.commands[0]) is None:
        pytest.skip(f"{target.toolchain.commands[0]} is not installed")
    graph: Graph = parse(NET, fill=fill)
    artifact = emit(graph, PARTS, target)
    network = SimulatedNetwork.of(artifact, tmp_path, target)
    profile = network.profile([draw(graph.inputs[0], 0)])
    counted = [f.cycles or 0 for f in profile.functions if f.name.startswith("net_conv_1")]
    assert sum(counted) == pytest.approx(int(artifact.macros["NET_LONGEST_STEP_CYCLES"]), rel=0.25)


def test_a_whole_run_has_no_parts(fill, host):
    artifact = emit(parse(NET, fill=fill), COutput(name="net"), host)
    text = "".join(artifact.files[name].decode() for name in ("net.h", "net.c"))
    assert not any(word in text for word in ("progress", "net_continue", "NET_STEPS"))
