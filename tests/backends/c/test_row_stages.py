"""Runs of layers that compute some rows at a time: the same bytes, in less memory."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from random import Random

import pytest
import torch
from torch import Tensor

from fxpress.backends.c import SimulatedNetwork, check, emit
from fxpress.backends.c.lower import lower
from fxpress.backends.c.plan import row_steps
from fxpress.backends.c.plan.memory import MemoryPlan, plan_memory
from fxpress.backends.c.plan.program import Program
from fxpress.backends.c.plan.regions import Region
from fxpress.backends.c.plan.row_stages import Planned, RowStages, plan_within
from fxpress.backends.c.target import Machine
from fxpress.backends.c.tools.stack import worst_case_stack
from fxpress.backends.c.tools.toolchain import compile_objects, target_compiler
from fxpress.ir import Graph, Value, parse, run_integer
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput

FORMS = {"i8": "<scale=0.0625, zero={zero}>", "i16": "<scale=0.0625, zero=0>", "f32": ""}
WEIGHTS = {"i8": "i8", "i16": "i8", "f32": "f32"}
UNDEFINED = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
STEM = """graph(%x: i8[1x3x32x32]<scale=0.0625, zero=-7>) {
  const %a: i8[8x3x3x3]<scale=0.5, zero=0>
  const %b: i8[8x8x3x3]<scale=0.5, zero=0>
  const %c: i8[8x8x3x3]<scale=0.5, zero=0>
  %p: i8[1x8x32x32]<scale=0.0625, zero=11> = conv{padding=(1, 1, 1, 1)}(%x, %a)
  %q: i8[1x8x16x16]<scale=0.0625, zero=3> = conv{stride=(2, 2), padding=(1, 1, 1, 1)}(%p, %b)
  %y: i8[1x8x8x8]<scale=0.0625, zero=0> = conv{stride=(2, 2), padding=(0, 1, 0, 1)}(%q, %c)
  return y: %y
}"""
needs_arm = pytest.mark.skipif(shutil.which("arm-none-eabi-gcc") is None, reason="no arm-none-eabi-gcc")
SEEDS = [*range(6), *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(6, 60))]


class Chain:
    """A random network of layers over an image or a signal, with branches that are added or joined, as text."""

    def __init__(self, random: Random, rank: int, form: str, layers: int) -> None:
        self.random, self.rank, self.form = random, rank, form
        self.lines: list[str] = []
        self.constants: list[str] = []
        self.shapes: dict[str, tuple[int, ...]] = {}
        sizes = [random.randint(6, 14) for _ in range(rank)]
        self.encodings: dict[str, str] = {}
        first = self.named("x", (random.randint(1, 5), *sizes))
        self.live = [first]
        for _ in range(layers):
            self.add()

    def named(self, name: str, shape: tuple[int, ...], encoding: str = "") -> str:
        self.shapes[name] = shape
        self.encodings[name] = encoding or FORMS[self.form].format(zero=self.random.randint(-128, 127))
        return name

    def type(self, name: str) -> str:
        return f"{self.form}[1x{'x'.join(map(str, self.shapes[name]))}]{self.encodings[name]}"

    def result(self, shape: tuple[int, ...], text: str, encoding: str = "") -> None:
        name = self.named(f"t{len(self.lines)}", shape, encoding)
        self.lines.append(f"%{name}: {self.type(name)} = {text}")
        self.live.append(name)

    def add(self) -> None:
        random = self.random
        x = random.choice(self.live[-2:])
        channels, *sizes = self.shapes[x]
        alike = [name for name in self.live if self.shapes[name] == self.shapes[x] and name != x]
        kind = random.choice(
            ["conv", "conv", "conv", "point", "depthwise", "max_pool", "relu", "add", "concat"]
        )
        if kind == "add" and alike:
            self.result(self.shapes[x], f"add(%{x}, %{random.choice(alike)})")
        elif kind == "concat" and alike:
            other = random.choice(alike)
            self.encodings[other] = self.encodings[other]
            if self.encodings[other] == self.encodings[x]:
                self.result((2 * channels, *sizes), f"concat{{axis=1}}(%{x}, %{other})", self.encodings[x])
        elif kind == "relu":
            self.result(self.shapes[x], f"relu(%{x})")
        elif kind == "max_pool":
            self.window(x, kind)
        else:
            self.window(x, kind)

    def window(self, x: str, kind: str) -> None:
        random, (channels, *sizes) = self.random, self.shapes[x]
        kernel = [1 if kind == "point" else random.randint(1, min(4, n)) for n in sizes]
        dilation = [
            random.randint(1, 2) if (k - 1) * 2 < n and kind != "depthwise" else 1
            for k, n in zip(kernel, sizes, strict=True)
        ]
        stride = [1 if kind == "point" or n < 5 else random.choice((1, 1, 2, 3)) for n in sizes]
        reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
        most = [n // 2 for n in (kernel if kind == "max_pool" else reach)]
        edges = [(random.randint(0, n), random.randint(0, n)) for n in most]
        ceil = kind == "max_pool" and all(before == after for before, after in edges)
        places = [
            (n + sum(e) - r + (s - 1) * ceil) // s + 1
            for n, e, r, s in zip(sizes, edges, reach, stride, strict=True)
        ]
        if ceil:  # the last window of a pool begins inside, or in the padding before
            places = [
                count - ((count - 1) * s >= n + before)
                for count, s, n, (before, _) in zip(places, stride, sizes, edges, strict=True)
            ]
        if min(places) < 1:
            return
        padding = _tuple([p for edge in edges for p in edge])
        moved = f"stride={_tuple(stride)}, padding={padding}, dilation={_tuple(dilation)}"
        if kind == "max_pool":
            if self.form == "i8":
                self.result(
                    (channels, *places),
                    f"max_pool{{kernel={_tuple(kernel)}, {moved}, ceil={ceil}}}(%{x})",
                    self.encodings[x],
                )
            return
        groups = channels if kind == "depthwise" else 1
        outputs = channels if kind == "depthwise" else random.randint(1, 9)
        weight = f"w{len(self.constants)}"
        encoding = "" if self.form == "f32" else "<scale=0.5, zero=0>"
        shape = "x".join(map(str, (outputs, channels // groups, *kernel)))
        self.constants.append(f"const %{weight}: {WEIGHTS[self.form]}[{shape}]{encoding}")
        self.result((outputs, *places), f"conv{{{moved}, groups={groups}}}(%{x}, %{weight})")

    def graph(self, fill: Callable[[Value], Tensor]) -> Graph:
        """The graph that returns its last value, and now and then one between."""
        returned = [self.live[-1]] + (
            [self.random.choice(self.live[1:-1])] if self.random.random() < 0.3 else []
        )
        body = "\n".join(["  " + line for line in (*self.constants, *self.lines)])
        outputs = ", ".join(f"y{i}: %{name}" for i, name in enumerate(dict.fromkeys(returned)))
        return parse(f"graph(%x: {self.type('x')}) {{\n{body}\n  return {outputs}\n}}", fill=fill)


def _tuple(numbers: list[int]) -> str:
    return f"({', '.join(map(str, numbers))},)"


class SomeStages:
    """In place of the choice of stages: any order of execution, any runs of layers, any number of rows."""

    def __init__(self, random: Random) -> None:
        self.random, self.steps = random, 0

    def __call__(
        self,
        programs: Sequence[Program],
        machine: Machine,
        limit: int | None,
        planned: Planned,
        *,
        smallest: bool = False,
    ) -> tuple[Program, MemoryPlan, tuple[str, ...], tuple[str, ...]]:
        program = self.random.choice(programs)
        found, runs, first = RowStages(program, planned(program), machine), [], 0
        while first < len(program.steps):
            stop = min(first + self.random.randint(1, 8), len(program.steps))
            scaled, lean = (self.random.random() < 0.5 for _ in range(2))
            run = found.run(first, stop, self.random.randint(1, 4), scaled=scaled, lean=lean)
            if run is not None:
                runs.append(run)
                self.steps += stop - first
            first = first + 1 if run is None else stop
        staged = found.with_stages(runs)
        return staged, planned(staged), (), ()


class OneStage:
    """In place of the choice of stages: the steps from `first` up to `stop`, one row at a time."""

    def __init__(self, first: int, stop: int) -> None:
        self.first, self.stop = first, stop

    def __call__(
        self,
        programs: Sequence[Program],
        machine: Machine,
        limit: int | None,
        planned: Planned,
        *,
        smallest: bool = False,
    ) -> tuple[Program, MemoryPlan, tuple[str, ...], tuple[str, ...]]:
        program = programs[0]
        stages = RowStages(program, planned(program), machine)
        run = stages.run(self.first, self.stop, 1, scaled=False)
        assert run is not None
        staged = stages.with_stages([run])
        return staged, planned(staged), (), ()


def test_operands_of_a_concatenation_by_rows_keep_their_places(
    fill, host, assert_equal_to_interpreter, monkeypatch
):
    graph = parse(
        """graph(%x: f32[1x4x6]) {
          const %w: f32[4x4x1]
          const %v: f32[4x8x1]
          %a: f32[1x4x6] = conv{stride=(1,), padding=(0, 0), dilation=(1,)}(%x, %w)
          %b: f32[1x4x6] = relu(%a)
          %c: f32[1x8x6] = concat{axis=1}(%b, %a)
          %d: f32[1x4x6] = conv{stride=(1,), padding=(0, 0), dilation=(1,)}(%c, %v)
          return d: %d
        }""",
        fill=fill,
    )
    monkeypatch.setattr("fxpress.backends.c.lower.plan_within", OneStage(2, 4))
    assert_equal_to_interpreter(graph, target=host.model_copy(update={"isa": "armv6-m"}))


def test_a_result_keeps_behind_rows_that_an_earlier_step_on_its_memory_reads(
    fill, host, assert_equal_to_interpreter, monkeypatch
):
    graph = parse(
        """graph(%x: i8[1x1x9]<scale=0.0625, zero=3>) {
          const %w: i8[5x1x3]<scale=0.5, zero=0>
          %a: i8[1x5x5]<scale=0.0625, zero=3> = conv{stride=(2,), padding=(1, 1), dilation=(1,)}(%x, %w)
          %b: i8[1x5x5]<scale=0.0625, zero=3> = relu(%a)
          return b: %b
        }""",
        fill=fill,
    )
    monkeypatch.setattr("fxpress.backends.c.lower.plan_within", OneStage(0, 2))
    assert_equal_to_interpreter(
        graph, options=COutput(name="net", buffers="arena"), target=host.model_copy(update={"isa": "armv6-m"})
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_any_layers_compute_the_same_some_rows_at_a_time(
    seed, host, cortex_m4, fill, assert_equal_to_interpreter, monkeypatch
):
    random = Random(seed)
    plain = host.model_copy(update={"isa": "armv6-m"})
    steps = 0
    for target in (cortex_m4, plain, host):
        chain = Chain(random, random.randint(1, 2), random.choice(("i8", "i8", "i16", "f32")), 10)
        stages = SomeStages(random)
        monkeypatch.setattr("fxpress.backends.c.lower.plan_within", stages)
        options = COutput(name="net", buffers=random.choice(("caller", "arena")))
        assert_equal_to_interpreter(
            chain.graph(fill), options=options, target=target, flags=UNDEFINED, seeds=2
        )
        steps += stages.steps
    assert steps > 2


@needs_arm
@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 12))])
@pytest.mark.parametrize("name", ["cortex-m4f", "cortex-m0plus"])
def test_the_stack_and_the_flash_of_stages_are_as_stated(name, seed, fill, tmp_path, monkeypatch):
    random, target = Random(seed), load_target(name)
    chain = Chain(random, random.randint(1, 2), random.choice(("i8", "i16")), 14)
    monkeypatch.setattr("fxpress.backends.c.lower.plan_within", SomeStages(random))
    artifact = emit(chain.graph(fill), COutput(name="net"), target)
    assert artifact.program.stages
    stack = worst_case_stack(
        compile_objects(target_compiler(target), artifact.write(tmp_path)[:1], tmp_path, flags=("-O3",)),
        "net_run",
    )
    stated = int(artifact.macros["NET_STACK_BYTES"])
    assert stack <= stated <= stack + 400
    network = SimulatedNetwork.of(artifact, tmp_path, target)
    assert 0.85 <= artifact.prediction.flash_bytes / network.footprint.flash <= 1.6
    type = artifact.graph.inputs[0].type
    x = torch.randint(-128, 128, type.shape, dtype=type.dtype.torch)
    for ours, theirs in zip(network.run([x]), run_integer(artifact.graph, [x]), strict=True):
        assert torch.equal(ours, theirs)
    SimulatedNetwork.of(artifact, tmp_path, target, strict_alignment=True).run(
        [x]
    )  # raises where a core would


def test_an_arena_that_is_too_large_gets_stages_and_the_summary_says_so(fill, cortex_m4):
    graph = parse(STEM, fill=fill)
    whole = emit(graph, COutput(name="net"), cortex_m4)
    small = emit(graph, COutput(name="net"), cortex_m4.model_copy(update={"ram": 4_000}))
    assert whole.plan.arena_bytes > 8_000 and not whole.program.stages
    assert small.plan.arena_bytes <= 4_000 and small.program.stages
    assert small.prediction.time <= 1.1 * whole.prediction.time
    (note,) = [note for note in small.notes if "some rows at a time" in note]
    assert f"{small.plan.arena_bytes:,} B in place of {whole.plan.arena_bytes:,} B" in note


def shuffled(program: Program, random: Random) -> Program:
    """The program in another order in which it can run."""
    waiting, steps = list(program.steps), []
    while waiting:
        made = {stored for step in waiting for stored in step.results}
        steps.append(random.choice([step for step in waiting if made.isdisjoint(step.operands)]))
        waiting = [step for step in waiting if step is not steps[-1]]
    return replace(program, steps=tuple(steps))


@pytest.mark.parametrize("seed", range(4))
def test_stages_are_taken_in_the_order_of_execution_in_which_they_fit(seed, fill, cortex_m4):
    random, machine = Random(seed), Machine.of(cortex_m4)
    program = lower(Chain(random, 2, "i8", 12).graph(fill), COutput(), cortex_m4).program
    orders = (shuffled(program, random), program)
    arenas = [plan_memory(order).arena_bytes for order in orders]
    for limit in (max(arenas), min(arenas) - 1, int(0.8 * min(arenas)), int(0.6 * min(arenas))):
        planned = partial(plan_memory, regions=(Region(bytes=limit),))
        alone = [plan_within((order,), machine, limit, planned) for order in orders]
        _, plan, measures, _ = plan_within(orders, machine, limit, planned)
        least = min(found.arena_bytes for _, found, _, _ in alone)
        assert (plan.arena_bytes <= limit) == (least <= limit)
        assert bool(measures) == (min(arenas) > limit >= least)


def test_a_refusal_has_the_least_arena_that_was_found(fill, cortex_m4):
    graph = parse(STEM, fill=fill)

    def problems(ram: int):
        return check(graph, COutput(name="net"), cortex_m4.model_copy(update={"ram": ram}))

    (problem,) = problems(500)
    least = int(re.search(r"the arena needs ([\d,]+) bytes", problem.message)[1].replace(",", ""))
    assert not problems(least) and problems(least - 64)


def test_wrong_padding_is_found(fill, host, assert_equal_to_interpreter, monkeypatch):
    monkeypatch.setattr("fxpress.backends.c.plan.row_steps.padding_byte", lambda op, type: 0)
    with pytest.raises(AssertionError):
        assert_equal_to_interpreter(parse(STEM, fill=fill), target=host.model_copy(update={"ram": 3_000}))


def test_calls_at_the_edges_of_a_whole_value_have_padding_there(
    fill, host, assert_equal_to_interpreter, monkeypatch
):
    small = host.model_copy(update={"ram": 3_000})
    artifact = assert_equal_to_interpreter(parse(STEM, fill=fill), target=small)
    first = artifact.program.steps[artifact.program.stages[0].first]
    assert first.rows is not None
    assert [form.count for form in first.rows.forms][::2] == [1, 1]
    assert [bool(form.at_first) for form in first.rows.forms] == [True, False, False]
    labels = [block.label for block in artifact.plan.blocks]
    assert not any(label.endswith("rows of x") for label in labels), "the input is read where it lies"
    roles = [array.symbol for array in artifact.source.arrays if "constants" in array.symbol]
    assert len(roles) <= 3, "all calls of a layer read the same weights"
    padded = row_steps._padded
    monkeypatch.setattr(row_steps, "_padded", lambda op, axis, rows: padded(op, axis, rows[::-1]))
    with pytest.raises(AssertionError):
        assert_equal_to_interpreter(parse(STEM, fill=fill), target=small)


def test_all_calls_of_a_layer_read_weights_that_are_decoded_once(cortex_m4, assert_equal_to_interpreter):
    text = STEM.replace("[8x3x", "[24x3x").replace("[8x8x3x3]", "[24x24x3x3]").replace("[1x8x", "[1x24x")
    graph = parse(text, fill=lambda value: (torch.rand(value.type.shape) * 3 - 1).to(torch.int8))
    artifact = assert_equal_to_interpreter(
        graph,
        options=COutput(name="net", weights="huffman"),
        target=cortex_m4.model_copy(update={"ram": 24_000}),
        flags=UNDEFINED,
    )
    (stage,) = artifact.program.stages
    steps = artifact.program.steps[stage.first : stage.stop]
    assert any(step.offer.coded and step.rows is not None and len(step.rows.forms) > 1 for step in steps)
    assert all(len(step.offer.coded) <= 1 for step in steps)


def test_a_stage_without_a_block_of_the_arena_takes_no_pointer_to_it(
    fill, host, assert_equal_to_interpreter, monkeypatch
):
    monkeypatch.setattr("fxpress.backends.c.lower.plan_within", OneStage(0, 1))
    lines = ["graph(%x: f32[1x4x8x8]) {", "  %y: f32[1x4x8x8] = relu(%x)", "  return y: %y", "}"]
    artifact = assert_equal_to_interpreter(parse("\n".join(lines), fill=fill), target=host, flags=UNDEFINED)
    (stage,) = artifact.program.stages
    assert stage.stop == 1 and artifact.plan.arena_bytes == 0


@pytest.mark.parametrize(
    "choices",
    [{"execution": "parts"}, {"weights_file": "binary"}, {"execution": "parts", "weights_file": "binary"}],
)
def test_stages_are_single_parts_of_a_run_and_read_weights_from_a_file(
    choices, fill, cortex_m4, assert_equal_to_interpreter
):
    graph, small = parse(STEM, fill=fill), cortex_m4.model_copy(update={"ram": 4_000})
    artifact = assert_equal_to_interpreter(
        graph, options=COutput(name="net", **choices), target=small, flags=UNDEFINED
    )
    (stage,) = artifact.program.stages
    if "execution" in choices:
        steps = artifact.prediction.nodes[stage.first : stage.stop]
        longest = f"NET_LONGEST_STEP_{artifact.prediction.unit.upper()}"
        assert int(artifact.macros[longest]) == sum(node.time for node in steps)


@pytest.mark.parametrize(
    ("line", "end"),
    [
        (
            "%z: i8[1x8x1x1]<scale=0.0625, zero=0> = mean{axes=(2, 3), keepdim=True}(%y)",
            "mean needs all rows at once",
        ),
        (
            "%z: i8[1x512]<scale=0.0625, zero=0> = reshape{shape=(1, 512)}(%y)",
            "the layout of %y is converted",
        ),
        ("", "it is the last layer"),
    ],
)
def test_a_stage_has_the_reason_for_its_end(line, end, fill, cortex_m4):
    graph = STEM.replace("return y: %y", f"{line}\n  return y: %{'z' if line else 'y'}")
    artifact = emit(parse(graph, fill=fill), COutput(), cortex_m4.model_copy(update={"ram": 4_000}))
    *_, stage = artifact.program.stages
    assert stage.end == end


@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_prime_number_of_rows_may_have_several_calls_at_an_edge(
    count, fill, cortex_m4, assert_equal_to_interpreter
):
    graph = parse(
        f"""graph(%x: i8[1x2x{29 * count}]<scale=0.0625, zero=3>) {{
          const %v: i8[16x2x9]<scale=0.5, zero=0>
          const %w: i8[16x16x3]<scale=0.5, zero=0>
          %a: i8[1x16x{29 * count}]<scale=0.0625, zero=7> = conv{{stride=(1,), padding=(4, 4), dilation=(1,)}}(%x, %v)
          %b: i8[1x16x{29 * count}]<scale=0.0625, zero=3> = conv{{stride=(1,), padding=(1, 1), dilation=(1,)}}(%a, %w)
          return b: %b
        }}""",
        fill=fill,
    )
    arena = emit(graph, COutput(), cortex_m4).plan.arena_bytes
    small = cortex_m4.model_copy(update={"ram": arena - 16 * 10})
    artifact = assert_equal_to_interpreter(graph, target=small, flags=UNDEFINED)
    assert artifact.program.stages


ENDS = re.compile(
    r"it is the last layer|t\d+ does not read its results|with t\d+ it would take [\d,]+ more (cycles|instructions)|"
    r"with t\d+ it would take [\d,]+ B of [\d,]+ by estimate(, since %t\d+(, %t\d+)* is read later, too)?|"
    r"no kernels compute t\d+ some rows at a time with the layers before it|"
    r"t\d+ is faster with the layers behind it|the layout of %\w+ is converted|[a-z_]+ [a-z ]+"
)


def test_every_stage_has_a_reason_for_its_end(fill, cortex_m4):
    seen = set()
    for seed in range(9):
        graph = Chain(Random(seed), 2, "i8", 12).graph(fill)
        arena = emit(graph, COutput(), cortex_m4).plan.arena_bytes
        for share in (0.9, 0.7):
            target = cortex_m4.model_copy(update={"ram": int(share * arena)})
            stages = lower(graph, COutput(), target, fastest=True).program.stages
            assert all(ENDS.fullmatch(stage.end) for stage in stages), [stage.end for stage in stages]
            seen |= {re.sub(r"t?[\d,]+", "", stage.end) for stage in stages}
    assert seen


def test_a_result_that_follows_its_operand_has_a_block_of_its_own(fill, cortex_m4):
    lines = ["graph(%x: i8[1x64x24]<scale=0.0625, zero=0>) {"]
    lines += ["  const %w: i8[64x64x1]<scale=0.5, zero=0>"]
    for number in range(4):
        before = "x" if number == 0 else f"v{number - 1}"
        lines.append(f"  %v{number}: i8[1x64x24]<scale=0.0625, zero=0> = conv(%{before}, %w)")
    graph = parse("\n".join([*lines, "  return y: %v3", "}"]), fill=fill)
    lowered = lower(graph, COutput(), cortex_m4)
    stages = RowStages(lowered.program, lowered.plan, Machine.of(cortex_m4))
    made = [step.results[0] for step in lowered.program.steps[:-1]]
    found = {stored.value.name: stages._block(stored) for stored in made}
    offsets = {name: block.offset for name, block in found.items() if block is not None}
    assert len({block.start for block in found.values() if block is not None}) == len(made)
    assert len(set(offsets.values())) < len(made), "no result follows its operand"
