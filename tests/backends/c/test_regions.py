"""Regions of RAM: the region of each block, the arguments of the emitted C, and equal bytes of results."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.backends.c import SimulatedNetwork, check, emit
from fxpress.backends.c.plan.offsets import Interval, assign_offsets
from fxpress.backends.c.plan.regions import Region, place_blocks
from fxpress.backends.c.tools.simulate import SimulatedModel, Simulator
from fxpress.backends.c.tools.stack import worst_case_stack
from fxpress.backends.c.tools.toolchain import (
    SANITIZERS,
    WARNINGS,
    build_image,
    check_header,
    compile_objects,
    find_compiler,
    link_program,
    target_compiler,
)
from fxpress.backends.c.write.ports import to_memory
from fxpress.backends.errors import SimulationError
from fxpress.ir import parse, run_integer
from fxpress.specs import TargetChoice, load_target
from fxpress.specs.outputs import COutput

NET = """graph(%x: i8[1x3x16x16]<scale=0.0625, zero=-7>) {
  const %a: i8[8x3x3x3]<scale=0.5, zero=0>
  const %b: i8[8x8x3x3]<scale=0.5, zero=0>
  const %c: i8[8x8x3x3]<scale=0.5, zero=0>
  %p: i8[1x8x16x16]<scale=0.0625, zero=11> = conv{padding=(1, 1, 1, 1)}(%x, %a)
  %q: i8[1x8x16x16]<scale=0.0625, zero=3> = conv{padding=(1, 1, 1, 1)}(%p, %b)
  %s: i8[1x8x16x16]<scale=0.0625, zero=5> = add(%p, %q)
  %y: i8[1x8x8x8]<scale=0.0625, zero=0> = conv{stride=(2, 2), padding=(0, 1, 0, 1)}(%s, %c)
  return y: %y
}"""
DTCM_AND_PSRAM = {"dtcm": "1 KiB", "psram": {"bytes": "8 KiB", "wait_states": 4}}
UNDEFINED = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
needs_arm = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc")


def with_regions(target, regions):
    """The target with regions as a spec writes them."""
    return TargetChoice(regions=regions).applied_to(target)


def divided(target, total, random, *, wait_states=3):
    """The target with one to three regions that have a little more than `total` bytes together."""
    cuts = sorted(random.randint(0, total) for _ in range(random.randint(0, 2)))
    sizes = [high - low for low, high in itertools.pairwise([0, *cuts, total])]
    regions = {
        f"ram_{i}": {"bytes": f"{size + 256} B", "wait_states": random.randint(0, wait_states)}
        for i, size in enumerate(sizes)
    }
    return with_regions(target, regions)


@st.composite
def problems(draw, most):
    """Blocks with accesses, results that follow an operand, and regions."""
    sizes = st.tuples(st.integers(1, 30), st.integers(0, 8), st.integers(0, 4))
    intervals = [Interval(4 * size, at, at + more) for size, at, more in draw(st.lists(sizes, max_size=most))]
    pairs = [
        (i, j)
        for i, result in enumerate(intervals)
        for j, operand in enumerate(intervals)
        if i != j and result.start == operand.end and operand.start < operand.end < result.end
    ]
    followed = draw(st.lists(st.sampled_from(pairs), max_size=3, unique=True)) if pairs else []
    accesses = [draw(st.integers(0, 500)) for _ in intervals]
    regions = [
        Region(f"ram_{i}", 4 * draw(st.integers(1, 40)), draw(st.integers(0, 3)))
        for i in range(draw(st.integers(2, 3)))
    ]
    return intervals, {pair: 4 * draw(st.integers(0, 30)) for pair in followed}, accesses, regions


def parted(intervals, follows, chosen, region):
    """The blocks of a region, and the pairs of them that follow."""
    own = [i for i, found in enumerate(chosen) if found == region]
    at = {index: number for number, index in enumerate(own)}
    kept = {(at[i], at[j]): d for (i, j), d in follows.items() if i in at and j in at}
    return own, [intervals[i] for i in own], kept


def shared(intervals, follows, found):
    """Pairs of blocks of one region that are in use at one step and share bytes that they must not share."""
    overlapping = []
    for i, j in itertools.combinations(range(len(intervals)), 2):
        a, b = intervals[i], intervals[j]
        is_apart = found.at[i] >= found.at[j] + b.bytes or found.at[j] >= found.at[i] + a.bytes
        is_followed = any(
            pair in follows and found.at[pair[1]] >= found.at[pair[0]] + follows[pair]
            for pair in ((i, j), (j, i))
        )
        if found.regions[i] == found.regions[j] and a.meets(b) and not is_apart and not is_followed:
            overlapping.append((i, j))
    return overlapping


@settings(max_examples=150, deadline=None)
@given(problems(most=12))
def test_blocks_are_inside_their_region_and_share_no_live_bytes(case):
    intervals, follows, accesses, regions = case
    found = place_blocks(intervals, follows, accesses, regions)
    assert not shared(intervals, follows, found)
    for number, region in enumerate(regions):
        own, _, _ = parted(intervals, follows, found.regions, number)
        assert found.peaks[number] == max((found.at[i] + intervals[i].bytes for i in own), default=0)
        assert found.missing or found.peaks[number] <= region.bytes
    assert found.bound <= found.cost + 1e-6
    assert found == place_blocks(intervals, follows, accesses, regions)


@settings(max_examples=60, deadline=None)
@given(problems(most=5))
def test_no_assignment_is_cheaper_than_one_that_is_called_the_cheapest(case):
    intervals, follows, accesses, regions = case
    found = place_blocks(intervals, follows, accesses, regions)
    fitting = []
    for chosen in itertools.product(range(len(regions)), repeat=len(intervals)):
        parts = [parted(intervals, follows, chosen, number) for number in range(len(regions))]
        if all(
            assign_offsets(own, kept).peak <= region.bytes
            for (_, own, kept), region in zip(parts, regions, strict=True)
        ):
            waits = sum(a * regions[r].wait_states for a, r in zip(accesses, chosen, strict=True))
            fitting.append(waits)
    assert bool(found.missing) == (not fitting)
    if fitting:
        waits = sum(a * regions[r].wait_states for a, r in zip(accesses, found.regions, strict=True))
        assert found.bound <= found.cost
        assert not found.is_cheapest or waits == min(fitting)


def test_accesses_decide_which_block_is_in_the_fast_region():
    intervals = [Interval(64, 0, 4), Interval(64, 0, 4), Interval(64, 0, 4)]
    regions = [Region("psram", 4096, 5), Region("dtcm", 64, 0)]
    for busy in range(3):
        accesses = [100 + 900 * (i == busy) for i in range(3)]
        found = place_blocks(intervals, {}, accesses, regions)
        assert [r for i, r in enumerate(found.regions) if i == busy] == [1]
        assert sum(found.regions) == 1 and found.is_cheapest


def test_of_equally_fast_regions_the_first_is_preferred():
    intervals = [Interval(64, 0, 4), Interval(64, 0, 4)]
    found = place_blocks(intervals, {}, [10, 20], [Region("a", 64), Region("b", 4096)])
    assert found.regions == (1, 0) and found.missing == 0
    assert place_blocks(intervals, {}, [10, 20], [Region("a", 4096), Region("b", 4096)]).regions == (0, 0)


def test_a_block_that_fits_no_region_is_counted_as_missing():
    found = place_blocks([Interval(100, 0, 1)], {}, [1], [Region("a", 60), Region("b", 80)])
    assert found.missing == 20 and not found.is_cheapest


@pytest.mark.parametrize(
    "seed", [*range(4), *(pytest.param(n, marks=pytest.mark.slow) for n in range(4, 24))]
)
def test_any_regions_give_the_bytes_of_the_interpreter(
    seed, fill, host, cortex_m4, assert_equal_to_interpreter
):
    random = Random(seed)
    graph = parse(NET, fill=fill)
    for target in (host, cortex_m4, host.model_copy(update={"isa": "armv6-m"})):
        options = COutput(name="net", buffers=random.choice(("caller", "arena")))
        total = emit(graph, options, target).plan.arena_bytes
        made = next(  # a region of three times the bytes holds all, so the search ends
            made
            for quarters in itertools.count(5)
            if not emit(
                graph, options, made := divided(target, total * quarters // 4, random)
            ).plan.missing_bytes
        )
        artifact = assert_equal_to_interpreter(graph, options=options, target=made, flags=UNDEFINED, seeds=1)
        plan = artifact.plan
        for block in plan.blocks:
            assert block.offset >= 0 and block.offset + block.bytes <= plan.regions[block.region].bytes
        assert sum(plan.waits.values()) == plan.wait_cycles == artifact.prediction.wait_cycles


def test_every_operator_computes_the_same_in_regions(operators, cortex_m4, assert_equal_to_interpreter):
    options = COutput(name="net", buffers="arena")
    total = emit(operators, options, cortex_m4).plan.arena_bytes
    target = with_regions(
        cortex_m4, {"fast": {"bytes": f"{total // 2 + 64} B"}, "slow": {"bytes": "1 MiB", "wait_states": 2}}
    )
    artifact = assert_equal_to_interpreter(operators, options=options, target=target, seeds=1, flags=("-O1",))
    assert not artifact.plan.missing_bytes


@pytest.mark.parametrize("choices", [{}, {"execution": "parts"}, {"weights_file": "binary"}])
def test_where_blocks_do_not_fit_layers_run_by_rows(choices, fill, cortex_m4, assert_equal_to_interpreter):
    graph = parse(NET, fill=fill)
    small = with_regions(cortex_m4, {"fast": "1 KiB", "sram": "1200 B"})
    artifact = assert_equal_to_interpreter(
        graph, options=COutput(name="net", **choices), target=small, flags=UNDEFINED
    )
    assert artifact.program.stages and not artifact.plan.missing_bytes
    assert all(used.bytes for used in artifact.plan.regions)
    assert any("some rows at a time" in note for note in artifact.notes)


def test_a_refusal_lists_what_each_region_needs(fill, cortex_m4):
    tiny = with_regions(cortex_m4, {"dtcm": "64 B", "sram": "128 B"})
    (problem,) = check(parse(NET, fill=fill), COutput(name="net"), tiny)
    assert problem.code == "C707"
    assert problem.message.startswith("the regions are too small: dtcm needs ")
    assert " bytes of 64, sram needs " in problem.message and problem.message.endswith(" bytes of 128")
    assert "the largest block contains" in problem.hint and problem.hint.endswith(
        "or raise the sizes in `target.regions`"
    )


def test_a_region_that_begins_like_the_network_is_refused(fill, cortex_m4):
    target = with_regions(cortex_m4, {"net_ram": "64 KiB"})
    (problem,) = check(parse(NET, fill=fill), COutput(name="net"), target)
    assert str(problem).startswith("region net_ram: begins with the prefix of the C names of the network net")
    assert problem.code == "C713"


def test_a_port_that_is_called_like_a_region_has_a_number(fill, cortex_m4):
    graph = parse(NET.replace("%x", "%dtcm"), fill=fill)
    artifact = emit(graph, COutput(name="net"), with_regions(cortex_m4, DTCM_AND_PSRAM))
    assert [port.parameter for port in artifact.ports] == ["input_0", "y"]
    assert "arena" not in artifact.files["net.h"].decode()


def test_a_network_without_regions_has_one_called_arena(fill, cortex_m4):
    graph = parse(NET, fill=fill)
    plain = emit(graph, COutput(name="net"), cortex_m4)
    named = emit(graph, COutput(name="net"), with_regions(cortex_m4, {"arena": "64 KiB"}))
    assert plain.files == named.files
    assert [(used.name, used.bytes) for used in plain.plan.regions] == [("arena", plain.plan.arena_bytes)]


def test_predicted_cycles_include_those_that_accesses_wait(fill):
    graph, target = parse(NET, fill=fill), load_target("cortex-m4f")
    cycles = {}
    for waits in (0, 4):
        regions = {"psram": {"bytes": "64 KiB", "wait_states": waits}}
        prediction = emit(graph, COutput(name="net"), with_regions(target, regions)).prediction
        cycles[waits] = prediction.cycles
        assert prediction.wait_cycles == cycles[waits] - cycles[0]
    assert cycles[4] > cycles[0]
    text = emit(graph, COutput(name="net", execution="parts"), with_regions(target, regions)).files["net.h"]
    assert b"estimate for the longest, with the wait states of RAM, without interrupts" in text


@needs_arm
def test_regions_at_different_addresses_on_a_core(fill, draw, tmp_path):
    target = with_regions(load_target("cortex-m4f"), DTCM_AND_PSRAM)
    artifact = emit(parse(NET, fill=fill), COutput(name="net"), target)
    assert all(used.bytes for used in artifact.plan.regions)
    network = SimulatedNetwork.of(artifact, tmp_path, target)
    for seed in range(2):
        x = draw(artifact.graph.inputs[0], seed)
        (found,), (wanted,) = network.run([x]), run_integer(artifact.graph, [x])
        assert (found == wanted).all()
    core = Simulator(tmp_path / "net.elf", target=target)
    x, y = core.allocate(3 * 256), core.allocate(8 * 64)
    far = [core.allocate(used.bytes) for used in reversed(artifact.plan.regions)][::-1]
    data = to_memory(draw(artifact.graph.inputs[0], 7), artifact.ports[0].stored).tobytes()
    core.write(x, data)
    assert core.call("net_run", x, y, *far).return_value == 0
    (wanted,) = run_integer(artifact.graph, [draw(artifact.graph.inputs[0], 7)])
    assert core.read(y, 512) == to_memory(wanted, artifact.ports[1].stored).tobytes()
    for number in range(2):
        given = [x, y, *far]
        given[2 + number] = 0
        assert core.call("net_run", *given).return_value == 1
        given[2 + number] = far[number] + 1
        assert core.call("net_run", *given).return_value == 2


@needs_arm
def test_a_region_that_is_too_small_is_found_on_a_core(fill, draw, tmp_path):
    target = with_regions(load_target("cortex-m4f"), DTCM_AND_PSRAM)
    artifact = emit(parse(NET, fill=fill), COutput(name="net"), target)
    image = build_image(
        target_compiler(target), artifact.write(tmp_path), tmp_path / "net.elf", keep=("net_run",)
    )
    for short in artifact.plan.regions:
        sizes = {u.name: u.bytes - 32 * (u is short) for u in artifact.plan.regions}
        model = SimulatedModel(
            Simulator(image, target=target), "net_run", input_bytes=[768], output_bytes=[512], regions=sizes
        )
        data = to_memory(draw(artifact.graph.inputs[0], 0), artifact.ports[0].stored).tobytes()
        with pytest.raises(SimulationError, match="outside of the given buffers"):
            model.run([data])


def test_a_region_without_blocks_may_be_null(fill, draw, tmp_path, cortex_m4):
    target = with_regions(cortex_m4, {"big": "64 KiB", "spare": "64 KiB"})
    options = COutput(name="net", self_test=2)
    graph = parse(NET, fill=fill)
    vectors = [[draw(v, seed) for v in graph.inputs] for seed in range(2)]
    artifact = emit(graph, options, target, vectors=vectors)
    assert artifact.macros["NET_SPARE_BYTES"] == "0" and int(artifact.macros["NET_BIG_BYTES"]) > 0
    assert "spare == NULL" not in artifact.files["net.c"].decode()
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    flags = ("-O1", "-DNET_TEST_MAIN", *WARNINGS, *SANITIZERS)
    program = link_program(find_compiler("gcc"), sources, tmp_path / "test", flags=flags)
    assert subprocess.run([program], capture_output=True, check=False).returncode == 0
    (tmp_path / "main.c").write_text(
        '#include "net.h"\n#include <stddef.h>\nstatic uint64_t big[NET_BIG_BYTES / 8 + 1];\n'
        "int main(void)\n{\n    static int8_t x[NET_X_SIZE], y[NET_Y_SIZE];\n"
        "    return net_run(x, y, big, NULL);\n}\n"
    )
    program = link_program(
        find_compiler("gcc"),
        [tmp_path / "main.c", *artifact.write(tmp_path)],
        tmp_path / "main",
        flags=WARNINGS,
    )
    assert subprocess.run([program], check=False).returncode == 0


def test_the_self_test_has_inputs_in_their_region(fill, draw, tmp_path, cortex_m4):
    target = with_regions(cortex_m4, DTCM_AND_PSRAM)
    graph = parse(NET, fill=fill)
    options = COutput(name="net", self_test=2, buffers="arena", execution="parts")
    vectors = [[draw(v, seed) for v in graph.inputs] for seed in range(2)]
    artifact = emit(graph, options, target, vectors=vectors)
    (region,) = {port.region for port in artifact.ports if port.is_input}
    assert f"NET_X_IN({region})" in artifact.files["net.h"].decode()
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    check_header(find_compiler("gcc"), tmp_path / "net.h")
    flags = ("-O1", "-DNET_TEST_MAIN", *WARNINGS, *SANITIZERS)
    program = link_program(find_compiler("gcc"), sources, tmp_path / "test", flags=flags)
    assert subprocess.run([program], capture_output=True, check=False).returncode == 0


def test_regions_may_be_called_like_functions_of_the_c_library(fill, draw, tmp_path, cortex_m4):
    target = with_regions(cortex_m4, {"index": "64 KiB", "fopen": "64 KiB"})
    graph = parse(NET, fill=fill)
    artifact = emit(graph, COutput(name="net", self_test=1), target, vectors=[[draw(graph.inputs[0], 0)]])
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    program = link_program(
        find_compiler("gcc"), sources, tmp_path / "test", flags=("-DNET_TEST_MAIN", *WARNINGS)
    )
    assert subprocess.run([program], capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("execution", ["whole", "parts"])
def test_a_network_of_views_alone_compiles_without_a_warning(execution, fill, tmp_path, cortex_m4):
    graph = parse("graph(%x: f32[1x6]) { %y: f32[1x2x3] = reshape{shape=(1, 2, 3)}(%x) return y: %y }")
    options = COutput(name="net", buffers="arena", execution=execution)
    artifact = emit(graph, options, with_regions(cortex_m4, DTCM_AND_PSRAM))
    compile_objects(find_compiler("gcc"), artifact.write(tmp_path), tmp_path, flags=WARNINGS)


def test_the_estimate_of_the_longest_step_says_whether_waits_are_in_it(fill):
    slow = {"sram": {"bytes": "64 KiB", "wait_states": 2}}
    for core, waits in (("cortex-m4f", "with the wait states of RAM"), ("cortex-m7", "without wait states")):
        target = with_regions(load_target(core), slow)
        header = emit(parse(NET, fill=fill), COutput(name="net", execution="parts"), target).files["net.h"]
        assert f"estimate for the longest, {waits}" in header.decode()


@pytest.mark.parametrize("execution", ["whole", "parts"])
@pytest.mark.parametrize("regions", [DTCM_AND_PSRAM, {"fast": "1 KiB", "sram": "1200 B"}])
def test_the_stack_macro_bounds_a_run_in_regions(regions, execution, fill, tmp_path, compiler):
    target = with_regions(load_target("cortex-m4f"), regions)
    artifact = emit(parse(NET, fill=fill), COutput(name="net", execution=execution), target)
    objects = compile_objects(
        compiler("cortex-m4f"), artifact.write(tmp_path), tmp_path, flags=("-O3", *WARNINGS)
    )
    assert worst_case_stack(objects, "net_run") <= int(artifact.macros["NET_STACK_BYTES"])


def test_a_write_beside_a_region_is_found_on_the_host(
    fill, cortex_m4, assert_equal_to_interpreter, monkeypatch
):
    target = with_regions(cortex_m4, DTCM_AND_PSRAM)
    monkeypatch.setattr(
        "fxpress.backends.c.plan.memory._aligned", lambda size, alignment: max(-(-size // 4) * 4 - 16, 4)
    )
    with pytest.raises(AssertionError, match=r"step|bytes beside"):
        assert_equal_to_interpreter(parse(NET, fill=fill), target=target)


def test_layers_run_by_rows_where_they_wait_less_so(fill, assert_equal_to_interpreter):
    graph = parse(
        """graph(%x: i8[1x3x32x32]<scale=0.0625, zero=-7>) {
          const %a: i8[8x3x3x3]<scale=0.5, zero=0>
          const %b: i8[8x8x3x3]<scale=0.5, zero=0>
          %p: i8[1x8x32x32]<scale=0.0625, zero=11> = conv{padding=(1, 1, 1, 1)}(%x, %a)
          %y: i8[1x8x16x16]<scale=0.0625, zero=3> = conv{stride=(2, 2), padding=(1, 1, 1, 1)}(%p, %b)
          return y: %y
        }""",
        fill=fill,
    )
    found = {}
    for waits in (0, 8):
        regions = {"fast": "4 KiB", "slow": {"bytes": "1 MiB", "wait_states": waits}}
        target = with_regions(load_target("cortex-m4f"), regions)
        found[waits] = assert_equal_to_interpreter(
            graph, options=COutput(name="net"), target=target, flags=UNDEFINED
        )
    assert not found[0].program.stages and found[0].plan.wait_cycles == 0
    slow, stages = found[8], found[8].program.stages
    assert [(stage.first, stage.stop) for stage in stages] == [(0, 2)] and slow.plan.wait_cycles == 0
    (note,) = [note for note in slow.notes if "some rows at a time" in note]
    assert "fewer predicted cycles" in note
