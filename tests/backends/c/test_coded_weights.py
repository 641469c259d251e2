"""Weights as Huffman codes in flash: decoded to the bytes that the kernels take, where that makes them smaller."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fxpress.backends.c import CArtifact, check, emit, predict
from fxpress.backends.c.plan.image import LONGEST_CODE, TABLE_BYTES, image_of
from fxpress.backends.c.plan.sparse_rows import MOST_ZEROS, SparseRows
from fxpress.backends.c.tools.elf import Footprint, read_elf
from fxpress.backends.c.tools.simulate import Simulator
from fxpress.backends.c.tools.simulated_network import SimulatedNetwork
from fxpress.backends.c.tools.stack import worst_case_stack
from fxpress.backends.c.tools.toolchain import (
    SANITIZERS,
    WARNINGS,
    Compiler,
    build_image,
    check_header,
    compile_objects,
    find_compiler,
    link_program,
    target_compiler,
)
from fxpress.backends.c.write.support import helpers
from fxpress.ir import Graph, Value, parse, run_integer
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

Stated = Callable[[CArtifact, str], int]
CODED, PLAIN = COutput(name="net", weights="huffman"), COutput(name="net")
UNDEFINED = ("-O1", "-fsanitize=undefined", "-fno-sanitize-recover=all")
PADDED = "padding=(1, 1, 1, 1)"
SIMULATED = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None or importlib.util.find_spec("unicorn") is None,
    reason="arm-none-eabi-gcc or unicorn is not installed",
)


@dataclass(frozen=True)
class Layer:
    """A layer in text form: shapes of input, weight and result, bits of the weights, and how many values they take."""

    op: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    bits: int = 8
    values: int = 16
    kernel: str = ""

    def graph(self) -> Graph:
        """The layer as a network."""
        x, weight, y = ("x".join(map(str, shape)) for shape in (self.x, self.weight, self.y))
        return parse(
            f"""graph(%x: i8[{x}]<scale=0.0625, zero=-3>) {{
              const %w: i8[{weight}]<bits={self.bits}, scale=0.0078125, zero=0>
              const %b: i32[{self.weight[0]}]<scale=0.00048828125, zero=0>
              %y: i8[{y}]<scale=0.25, zero=6> = {self.op}(%x, %w, %b)
              return y: %y
            }}""",
            fill=self._constant,
        )

    def _constant(self, value: Value) -> torch.Tensor:
        generator = torch.Generator().manual_seed(self.values)
        if value.name == "b":
            return torch.randint(-9000, 9000, value.type.shape, generator=generator, dtype=torch.int32)
        limit = 1 << (self.bits - 1)
        table = torch.randperm(2 * limit, generator=generator)[: self.values] - limit
        spread = torch.randn(value.type.shape, generator=generator) * self.values / 6 + self.values / 2
        return table[spread.long().clamp(0, self.values - 1)].to(torch.int8)


LAYERS = {
    "conv": Layer(f"conv{{{PADDED}}}", (1, 16, 7, 7), (32, 16, 3, 3), (1, 32, 7, 7), kernel="conv_dsp"),
    "pointwise": Layer("conv", (1, 64, 5, 3), (64, 64, 1, 1), (1, 64, 5, 3), kernel="conv_dsp"),
    "grouped": Layer(f"conv{{{PADDED}, groups=2}}", (1, 32, 4, 4), (32, 16, 3, 3), (1, 32, 4, 4)),
    "depthwise": Layer(
        f"conv{{{PADDED}, groups=200}}",
        (1, 200, 4, 4),
        (200, 1, 3, 3),
        (1, 200, 4, 4),
        values=4,
    ),
    "linear": Layer("linear", (1, 256), (32, 256), (1, 32), kernel="linear_dsp"),
    "winograd": Layer(
        f"conv{{{PADDED}}}", (1, 16, 32, 32), (16, 16, 3, 3), (1, 16, 32, 32), values=4, kernel="winograd_dsp"
    ),
    "int4": Layer(f"conv{{{PADDED}}}", (1, 32, 5, 5), (64, 32, 3, 3), (1, 64, 5, 5), 4, 5, "conv_dsp"),
    "int4 winograd": Layer(
        f"conv{{{PADDED}}}", (1, 32, 12, 12), (32, 32, 3, 3), (1, 32, 12, 12), 4, 3, "winograd_dsp"
    ),
    "int2 linear": Layer("linear", (1, 512), (64, 512), (1, 64), 2, 2, "linear_dsp"),
    "one value": Layer("conv", (1, 64, 5, 3), (64, 64, 1, 1), (1, 64, 5, 3), values=1),
    "two values": Layer("conv", (1, 64, 5, 3), (64, 64, 1, 1), (1, 64, 5, 3), values=2),
}


def coded(artifact: CArtifact) -> list[tuple[int, int]]:
    """Bytes of each coded constant, and of its image in flash."""
    steps = artifact.program.steps
    return [(c.bytes, c.flash_bytes) for step in steps for c in step.offer.coded]


@pytest.mark.parametrize("name", LAYERS)
def test_coded_weights_compute_the_bytes_of_the_interpreter(
    name: str, cortex_m4: Target, host: Target, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    layer = LAYERS[name]
    for target, flags in ((cortex_m4, UNDEFINED), (host, UNDEFINED), (cortex_m4, ("-O2",))):
        graph = layer.graph()
        artifact = assert_equal_to_interpreter(graph, options=CODED, target=target, flags=flags, seeds=1)
        assert target is host or layer.kernel in ("", artifact.prediction.nodes[0].kernel)
        ((plain_bytes, image_bytes),) = coded(artifact)
        assert image_bytes < plain_bytes
        assert artifact.prediction.flash_bytes < predict(graph, target).flash_bytes


def test_an_image_with_wrong_bytes_is_found(
    monkeypatch: pytest.MonkeyPatch, host: Target, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    monkeypatch.setattr(
        "fxpress.backends.c.plan.image.canonical_order", lambda lengths: [*range(len(lengths))][::-1]
    )
    with pytest.raises(AssertionError, match="step 0"):
        assert_equal_to_interpreter(LAYERS["conv"].graph(), options=CODED, target=host)


@SIMULATED
@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m4f"])
@pytest.mark.parametrize("name", ["conv", "depthwise", "winograd", "int4", "one value", "two values"])
def test_a_core_computes_the_bytes_of_the_interpreter_at_the_predicted_cost(
    name: str, cpu: str, stated_stack: Stated, tmp_path: Path
) -> None:
    target = load_target(cpu).model_copy(update={"ram": None, "flash": None, "stack": None})
    plain, huffman = (emit(LAYERS[name].graph(), o, target) for o in (PLAIN, CODED))
    runs = [_run(artifact, cpu, tmp_path, stated_stack(artifact, cpu)) for artifact in (plain, huffman)]
    (before, bytes_before), (after, bytes_after) = runs
    assert bytes_after.flash < bytes_before.flash
    saved = plain.prediction.flash_bytes - huffman.prediction.flash_bytes
    assert saved == pytest.approx(bytes_before.flash - bytes_after.flash, abs=250)  # of two predictions
    kernels = {artifact.prediction.nodes[0].kernel for artifact in (plain, huffman)}
    if len(kernels) == 1:
        more = huffman.prediction.instructions - plain.prediction.instructions
        # decoded weights come in registers, constants of flash do not: that changes the kernel itself a little
        assert more == pytest.approx(after - before, rel=0.12, abs=0.002 * before)
    else:
        assert huffman.prediction.instructions == pytest.approx(after, rel=0.08)


def _run(artifact: CArtifact, cpu: str, folder: Path, stack_bytes: int) -> tuple[int, Footprint]:
    """Instructions of a run that gives the interpreter's bytes within the stack that is stated, and its image."""
    network = SimulatedNetwork.of(artifact, folder, load_target(cpu))
    x = artifact.graph.inputs[0].type.shape
    sample = torch.randint(-128, 128, x, generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    assert network.run([sample])[0].equal(run_integer(artifact.graph, [sample])[0])
    assert network.model.stack_bytes <= stack_bytes
    return network.profile([sample]).instructions, network.footprint


@SIMULATED
def test_decoded_words_lie_where_several_are_loaded_at_once(cortex_m4: Target, tmp_path: Path) -> None:
    artifact = emit(LAYERS["linear"].graph(), CODED, cortex_m4)
    network = SimulatedNetwork.of(artifact, tmp_path, load_target("cortex-m4f"), strict_alignment=True)
    sample = torch.zeros(artifact.graph.inputs[0].type.shape, dtype=torch.int8)
    assert network.run([sample])[0].equal(run_integer(artifact.graph, [sample])[0])


def test_the_arena_holds_the_decoded_weights_behind_the_scratch(cortex_m4: Target) -> None:
    graph = LAYERS["pointwise"].graph()
    plain, huffman = (emit(graph, options, cortex_m4) for options in (PLAIN, CODED))
    scratch = plain.prediction.nodes[0].scratch_bytes
    ((decoded, _),) = coded(huffman)
    assert 0 < scratch < TABLE_BYTES
    assert huffman.plan.arena_bytes == huffman.prediction.arena_bytes == TABLE_BYTES + decoded
    assert huffman.prediction.nodes[0].scratch_bytes == TABLE_BYTES + decoded
    assert [block.label for block in huffman.plan.blocks] == ["decoded weights and scratch of conv"]


TWO_LAYERS = """graph(%x: i8[1x64x6x6]<scale=0.0625, zero=0>) {
  const %w: i8[64x64x3x3]<scale=0.0078125, zero=0>
  const %v: i8[64x64x1x1]<scale=0.0078125, zero=0>
  %a: i8[1x64x6x6]<scale=0.25, zero=0> = conv{padding=(1, 1, 1, 1)}(%x, %w)
  %b: i8[1x64x6x6]<scale=0.25, zero=0> = conv(%a, %v)
  %c: i8[1x64x6x6]<scale=0.25, zero=0> = conv(%b, %v)
  return c: %c
}"""


def few_values(value: Value) -> torch.Tensor:
    """Weights of eight values."""
    generator = torch.Generator().manual_seed(value.type.numel)
    return torch.randint(-4, 4, value.type.shape, generator=generator, dtype=torch.int8) * 9


def test_weights_of_several_layers_lie_in_flash_once_and_are_decoded_by_each(
    cortex_m4: Target, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    artifact = assert_equal_to_interpreter(
        parse(TWO_LAYERS, fill=few_values), options=CODED, target=cortex_m4, flags=UNDEFINED, seeds=1
    )
    source = artifact.files["net.c"].decode()
    assert source.count("    fxp_decode(net_") == 3
    assert len(re.findall("extern const uint16_t net_(?:constants|weights)", source)) == 2
    assert artifact.prediction.nodes[2].constant_bytes == 0


def test_a_layer_without_room_to_decode_keeps_its_weights(cortex_m4: Target) -> None:
    graph = parse(TWO_LAYERS, fill=few_values)
    roomy = predict(graph, cortex_m4, options=CODED)
    tight = cortex_m4.model_copy(update={"ram": roomy.arena_bytes - 1})
    found = emit(
        graph, CODED, tight
    )  # a kernel of less memory for the largest layer, which decodes all the same
    assert [len(s.offer.coded) for s in found.program.steps] == [1, 1, 1]
    assert found.plan.arena_bytes <= tight.ram
    tight = cortex_m4.model_copy(update={"ram": 39_000})  # less than that layer decoded with any kernel
    found = emit(graph, CODED, tight)
    assert [len(s.offer.coded) for s in found.program.steps] == [0, 1, 1]
    assert "no RAM to decode the weights of a: they are not coded" in found.lowered.notes
    assert found.plan.arena_bytes <= tight.ram
    assert predict(graph, cortex_m4).flash_bytes > found.prediction.flash_bytes > roomy.flash_bytes
    tiny = cortex_m4.model_copy(update={"ram": 512})
    assert [p.code for p in check(graph, CODED, tiny)] == ["C707"]


def test_flash_that_only_codes_fit_is_enough(cortex_m4: Target) -> None:
    graph = parse(TWO_LAYERS, fill=few_values)
    small = cortex_m4.model_copy(update={"flash": predict(graph, cortex_m4, options=CODED).flash_bytes})
    assert check(graph, CODED, small) == []
    assert [p.code for p in check(graph, PLAIN, small)] == ["C708"]


@pytest.mark.parametrize(
    "layer",
    [
        Layer("conv", (1, 64, 5, 3), (64, 64, 1, 1), (1, 64, 5, 3), values=256),
        Layer("linear", (1, 32), (8, 32), (1, 8), values=2),
    ],
    ids=["no bytes saved", "less saved than the decoder takes"],
)
def test_what_gets_no_smaller_is_emitted_plain(layer: Layer, cortex_m4: Target) -> None:
    graph = layer.graph()
    if layer.values == 256:
        shape = layer.weight
        even = torch.arange(64 * 64).reshape(shape).remainder(256).sub(128).to(torch.int8)
        graph = Graph(
            graph.inputs, graph.outputs, graph.nodes, {**graph.params, "w": even}, graph.output_names
        )
    assert emit(graph, CODED, cortex_m4).files == emit(graph, PLAIN, cortex_m4).files


COMPILERS = ("gcc", "clang", "riscv32", "cortex-m0plus", "cortex-m4f", "cortex-m33")


@pytest.mark.parametrize("name", COMPILERS)
@pytest.mark.parametrize("optimization", ["-O0", "-Os", "-O3"])
def test_decoding_compiles_without_a_warning_and_within_the_stack(
    name: str,
    optimization: str,
    cortex_m4: Target,
    host: Target,
    stated_stack: Stated,
    compiler: Callable[[str], Compiler],
    tmp_path: Path,
) -> None:
    target = host if name.startswith("riscv") else cortex_m4  # without string.h
    artifact = emit(parse(TWO_LAYERS, fill=few_values), CODED, target)
    flags = (optimization, "-fno-stack-protector", *WARNINGS)
    objects = compile_objects(compiler(name), artifact.write(tmp_path), tmp_path, flags=flags)
    if name.startswith("cortex") and optimization != "-O0":
        assert worst_case_stack(objects, "net_run") <= stated_stack(artifact, name)
    if not name.startswith("cortex") and optimization == "-O3":
        undefined = {s for o in objects for s in read_elf(o).undefined if not s.startswith("net_")}
        assert undefined - {"_GLOBAL_OFFSET_TABLE_"} <= {"memcpy", "memset"}
    if name == "gcc":
        check_header(find_compiler("g++"), tmp_path / "net.h")


def test_the_self_test_passes_under_sanitizers(host: Target, tmp_path: Path) -> None:
    graph = parse(TWO_LAYERS, fill=few_values)
    sample = torch.zeros(graph.inputs[0].type.shape, dtype=torch.int8)
    artifact = emit(graph, CODED, host, vectors=[[sample]])
    sources = [*artifact.write(tmp_path), tmp_path / "net_test.c"]
    flags = ("-O0", "-DNET_TEST_MAIN", *WARNINGS, *SANITIZERS)
    program = link_program(find_compiler("gcc"), sources, tmp_path / "self_test", flags=flags)
    done = subprocess.run([program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "net: 0 of 1 outputs differ\n"), done.stderr


@pytest.fixture(scope="module")
def core(tmp_path_factory: pytest.TempPathFactory) -> Simulator:
    """The decoder by itself on a Cortex-M0+, with a guard page behind every buffer."""
    folder = tmp_path_factory.mktemp("decoder")
    entry = """
void decode(const uint16_t *image, int32_t start, uint8_t *to, int32_t words, uint16_t *table)
{
    fxp_decode(image, start, to, words, table);
}
"""
    support = helpers(("arithmetic.h", "huffman.h"), [entry])
    (folder / "decoder.c").write_text("\n".join(["#include <stdint.h>", *support, entry]))
    compiler = target_compiler(load_target("cortex-m0plus"))
    image = build_image(compiler, [folder / "decoder.c"], folder / "decoder.elf", keep=("decode",))
    return Simulator(image, target=load_target("cortex-m0plus"))


@st.composite
def constants(draw: st.DrawFn) -> np.ndarray:
    """Bytes, some frequent and some rare, and words among them that have nothing to do with them."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    alphabet = generator.permutation(256)[: draw(st.integers(1, 256))]
    skew = draw(st.sampled_from((0.0, 0.5, 2.0, 6.0)))
    share = np.arange(1, len(alphabet) + 1) ** -skew
    size = draw(st.integers(1, 3000))
    data = generator.choice(alphabet, size, p=share / share.sum()).astype(np.uint8)
    if draw(st.booleans()):
        whole = data[: size // 4 * 4].reshape(-1, 4)
        strange = generator.random(len(whole)) < 0.1
        whole[strange] = generator.integers(0, 256, (int(strange.sum()), 4))
    data[generator.random(size) < draw(st.sampled_from((0.0, 0.5, 0.95)))] = 0
    return data.view(np.int8)


@SIMULATED
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(constants())
@example(np.zeros(1, np.int8))
@example(np.arange(-128, 128).astype(np.int8))
def test_what_is_coded_comes_back_and_nothing_past_the_end_is_read(core: Simulator, data: np.ndarray) -> None:
    image = image_of(data)
    assert max(image.code.lengths) <= LONGEST_CODE
    assert image.halfwords.nbytes == image.bytes
    at = core.place(image.halfwords.astype("<u2").tobytes(), alignment=4)
    to, table = core.allocate(image.decoded_bytes, alignment=4), core.allocate(TABLE_BYTES, alignment=4)
    core.call("decode", at, image.codes_at, to, image.decoded_bytes // 4, table)
    assert core.read(to, data.nbytes) == data.tobytes()


def test_biases_and_multipliers_among_weights_stand_as_they_are() -> None:
    generator = np.random.default_rng(0)
    rows = generator.choice(np.array([-40, 0, 40]), (64, 72)).astype(np.int8)
    scales = generator.integers(-(2**31), 2**31, (64, 2)).astype("<i4").view(np.int8)
    image = image_of(np.concatenate([scales, rows], axis=1))
    assert int(image.raw.sum()) == 128
    assert set(image.code.symbols) - {512} == {0, 40, 256 - 40, 256}
    assert image.bytes < 64 * (8 + 72 / 4 + 2)


def test_the_image_is_within_a_twentieth_of_what_the_bytes_tell() -> None:
    generator = np.random.default_rng(0)
    data = np.clip(np.round(generator.normal(0, 30, 20000)), -127, 127).astype(np.int8)
    _, counts = np.unique(data, return_counts=True)
    share = counts / counts.sum()
    assert image_of(data).bytes < 1.05 * float(-(share * np.log2(share)).sum()) * data.size / 8


def sparse_graph(
    share: float, *, rows: str = "1", inputs: int = 300, extra: str = "", x: str = "i8"
) -> Graph:
    """A linear layer of which this share of the weights is not zero."""

    def constant(value: Value) -> torch.Tensor:
        generator = torch.Generator().manual_seed(1)
        if value.name == "b":
            return torch.randint(-9000, 9000, value.type.shape, generator=generator, dtype=torch.int32)
        drawn = torch.randint(-8, 8, value.type.shape, generator=generator) * 15
        drawn[torch.rand(value.type.shape, generator=generator) >= share] = 0
        drawn[3] = 0
        return drawn.to(torch.int8)

    return parse(
        f"""graph(%x: {x}[{rows}x{inputs}]<scale=0.0625, zero={0 if x == "i16" else -3}>{extra and ", " + extra}) {{
          const %w: i8[64x{inputs}]<scale=0.0078125, zero=0>
          const %b: i32[64]<scale=0.00048828125, zero=0>
          %y: i8[{rows}x64]<scale=0.25, zero=6> = linear(%x, %w, %b{extra and ", %r"})
          return y: %y
        }}""",
        fill=constant,
    )


RESIDUAL = "%r: i8[1x64]<scale=0.125, zero=2>"


@pytest.mark.parametrize(
    "graph",
    [
        sparse_graph(0.05),
        sparse_graph(0.01, inputs=1000),  # more than 255 zeros in a row
        sparse_graph(0.02, inputs=255),  # the row of zeros
        sparse_graph(0.05, extra=RESIDUAL),
        sparse_graph(0.05, rows="1x1"),
        sparse_graph(0.02, x="i16"),
    ],
    ids=["few", "long gaps", "gaps of 255", "residual", "three dimensions", "int16"],
)
def test_a_linear_layer_reads_codes_of_its_nonzero_weights(
    graph: Graph, cortex_m4: Target, host: Target, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    for target in (cortex_m4, host):
        artifact = assert_equal_to_interpreter(graph, options=CODED, target=target, flags=UNDEFINED, seeds=2)
        (step,) = [step for step in artifact.program.steps if step.node is not None]
        assert step.offer.kernel == "sparse_linear"
        assert artifact.plan.arena_bytes <= 1024 + 8
        assert "fxp_decode(" not in artifact.files["net.c"].decode()


def test_codes_of_nonzero_weights_are_smaller_than_codes_of_bytes(cortex_m4: Target) -> None:
    """Five percent of nonzero weights with 15 values: 0.29 bits for the places and 0.2 for the values."""
    graph = sparse_graph(0.05, inputs=1000)
    (offer,) = [step.offer for step in emit(graph, CODED, cortex_m4).program.steps]
    assert offer.weight_bytes < 0.52 * 64 * 1000 / 8 + 150


@pytest.mark.parametrize(
    ("graph", "why"),
    [
        (sparse_graph(0.9), "few zeros"),
        (sparse_graph(0.05, rows="2"), "two rows"),
        (sparse_graph(0.0), "all weights zero"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_layers_decode_their_weights(
    graph: Graph, why: str, cortex_m4: Target, assert_equal_to_interpreter: Callable[..., CArtifact]
) -> None:
    artifact = assert_equal_to_interpreter(graph, options=CODED, target=cortex_m4, flags=UNDEFINED, seeds=1)
    assert "sparse_linear" not in {step.offer.kernel for step in artifact.program.steps}, why


@st.composite
def sparse_rows(draw: st.DrawFn) -> np.ndarray:
    """Rows of weights, most of them zero."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = draw(st.integers(1, 5)), draw(st.integers(1, 1200))
    kept = generator.random(shape) < draw(st.sampled_from((0.0, 0.003, 0.05, 0.5, 1.0)))
    rows = np.where(kept, generator.integers(-128, 128, shape), 0).astype(np.int8)
    rows[0, -1] = draw(st.integers(1, 127))
    return rows


@given(sparse_rows())
@example(np.eye(1, 256, 255, dtype=np.int8))
@example(np.eye(1, 511, 255, dtype=np.int8))
def test_rows_of_weights_come_back_from_their_codes(rows: np.ndarray) -> None:
    """Read as the kernel reads them, by the definition of the codes."""
    coded = SparseRows(rows)
    data = coded.halfwords
    assert data.nbytes == coded.bytes
    bits = iter("".join(f"{half:016b}" for half in data[coded.codes_at :].tolist()))
    tables = [{digits: s for s, digits in code.digits.items()} for code in (coded.zeros, coded.values)]

    def read(table: dict[str, int]) -> int:
        digits = next(bits)
        while digits not in table:
            digits += next(bits)
        return table[digits]

    found = np.zeros(rows.shape, np.uint8)
    for row in found:
        at = 0
        while at < len(row):
            zeros = read(tables[0])
            at += zeros
            if zeros < MOST_ZEROS and at < len(row):
                row[at] = read(tables[1])
                at += 1
    assert np.array_equal(found.view(np.int8), rows)


@SIMULATED
@pytest.mark.parametrize("cpu", ["cortex-m0plus", "cortex-m4f"])
def test_a_core_multiplies_with_codes_at_the_predicted_cost(
    cpu: str, stated_stack: Stated, tmp_path: Path
) -> None:
    target = load_target(cpu).model_copy(update={"ram": None, "flash": None, "stack": None})
    artifact = emit(sparse_graph(0.05, inputs=1000), CODED, target)
    instructions, footprint = _run(artifact, cpu, tmp_path, stated_stack(artifact, cpu))
    assert artifact.prediction.instructions == pytest.approx(instructions, rel=0.06)
    assert artifact.prediction.flash_bytes == pytest.approx(footprint.flash, abs=250)
