"""The C of five trained networks: every layer's bytes, every compiler, nothing undefined, the stack as stated."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import pytest

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.backends.c.tools.stack import worst_case_stack
from fxpress.backends.c.tools.toolchain import (
    WARNINGS,
    Compiler,
    check_header,
    compile_objects,
    find_compiler,
)
from fxpress.compiler import open_session, run_passes
from fxpress.ir import Graph
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

ROOT = Path(__file__).parents[3]
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
NAMES = ("ic", "kws", "vww", "ad", "sww")
SAMPLED = [pytest.param(name, marks=pytest.mark.slow if name in ("vww", "sww") else ()) for name in NAMES]
# Limits of the stated stack above the frames, for networks with very different shapes.
MOST = {"cortex-m0plus": 1.9, "riscv32": 5.0}
COMPILERS = ("gcc", "clang", "cortex-m0plus", "cortex-m4f", "cortex-m7", "cortex-m33")

pytestmark = pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason=f"the samples behind the documented figures are not in {SHARED}",
)


@lru_cache
def integer_graph(
    name: str, activations: str = "int8", weights: str = "int8", codebook_bits: str = "null"
) -> Graph:
    """The network of an example spec after all its passes, with activations and weights of these bits."""
    session = open_session(
        ROOT / "examples" / "mlperf_tiny" / f"{name}.yaml",
        overrides=[
            "data.calibration.samples=64",
            f"passes[2].activations={activations}",
            f"passes[2].weights={weights}",
            f"passes[2].codebook_bits={codebook_bits}",
        ],
    )
    return run_passes(session)[-1].graph


@pytest.mark.parametrize("name", SAMPLED)
def test_every_layer_computes_the_bytes_of_the_integer_graph(
    name: str, assert_equal_to_interpreter: object, cortex_m4: Target
) -> None:
    assert callable(assert_equal_to_interpreter)
    for target in (cortex_m4, None):  # DSP kernels in their portable form, and the portable kernels
        assert_equal_to_interpreter(
            integer_graph(name), options=COutput(name="net", io="int8"), target=target
        )


@pytest.mark.parametrize("name", [pytest.param("ic", marks=pytest.mark.slow), "kws"])
def test_every_layer_of_sixteen_bits_computes_the_bytes_of_the_integer_graph(
    name: str, assert_equal_to_interpreter: object, cortex_m4: Target
) -> None:
    assert callable(assert_equal_to_interpreter)
    graph = integer_graph(name, "int16")
    kept = [node for node in graph.nodes if node.op.name != "dequantize"]
    assert {(q := node.output.type.quantization) and q.bits for node in kept} == {16}
    for target in (cortex_m4, None):
        assert_equal_to_interpreter(graph, options=COutput(name="net", io="int8"), target=target)


@pytest.mark.parametrize("name", SAMPLED)
def test_every_compiler_takes_the_network_without_a_warning(
    name: str,
    cortex_m4: Target,
    stated_stack: Callable[[CArtifact, str], int],
    compiler: Callable[[str], Compiler],
    tmp_path: Path,
) -> None:
    artifact = emit(integer_graph(name), COutput(name="net"), cortex_m4)
    sources = artifact.write(tmp_path)
    for program in COMPILERS:
        flags = ("-O2", "-fno-stack-protector", *WARNINGS)
        objects = compile_objects(compiler(program), sources, tmp_path, flags=flags)
        if program.startswith("cortex"):
            assert worst_case_stack(objects, "net_run") <= stated_stack(artifact, program)
        undefined = {s for o in objects for s in read_elf(o).undefined if not s.startswith("net_")}
        helpers = {s for s in undefined if s.startswith("__aeabi_")}  # 64-bit arithmetic of a core without it
        assert undefined - helpers - {"_GLOBAL_OFFSET_TABLE_"} <= {"memcpy", "memset"}
        assert not helpers or program == "cortex-m0plus"
    check_header(find_compiler("g++"), tmp_path / "net.h")


@pytest.mark.slow
@pytest.mark.parametrize("core", [*COMPILERS[2:], "cortex-m3", "cortex-m4", "cortex-m55", "riscv32"])
@pytest.mark.parametrize("name", NAMES)
def test_the_stated_stack_is_at_most_so_far_above_the_frames_of_the_compiler(
    name: str, core: str, compiler: Callable[[str], Compiler], tmp_path: Path
) -> None:
    target = load_target(core).model_copy(update={"ram": None, "flash": None, "stack": None})
    artifact = emit(integer_graph(name), COutput(name="net"), target)
    sources = artifact.write(tmp_path)[:1]
    found = [
        worst_case_stack(compile_objects(compiler(core), sources, tmp_path, flags=(level,)), "net_run")
        for level in ("-O2", "-O3", "-Os")
    ]
    assert max(found) <= int(artifact.macros["NET_STACK_BYTES"]) <= MOST.get(core, 1.5) * max(found)


@pytest.mark.parametrize(
    ("name", "weights", "activations"),
    [
        pytest.param("ic", "int4", "int8", marks=pytest.mark.slow),
        ("kws", "int4", "int8"),
        ("kws", "int2", "int8"),
        ("kws", "int4", "int16"),
    ],
)
def test_every_layer_with_packed_weights_computes_the_bytes_of_the_integer_graph(
    name: str, weights: str, activations: str, assert_equal_to_interpreter: object, cortex_m4: Target
) -> None:
    assert callable(assert_equal_to_interpreter)
    graph = integer_graph(name, activations, weights)
    layers = [v.type for v in graph.constants if v.type.rank > 1]
    assert {t.quantization.bits for t in layers if t.quantization} == {int(weights.removeprefix("int"))}
    for target in (cortex_m4, None):
        assert_equal_to_interpreter(graph, options=COutput(name="net", io="int8"), target=target)


@pytest.mark.parametrize("name", [pytest.param("ic", marks=pytest.mark.slow), "kws"])
def test_every_layer_with_coded_weights_computes_the_bytes_of_the_integer_graph(
    name: str, assert_equal_to_interpreter: object, cortex_m4: Target
) -> None:
    assert callable(assert_equal_to_interpreter)
    graph, options = integer_graph(name, codebook_bits="4"), COutput(name="net", weights="huffman")
    for target in (cortex_m4, None):
        artifact = assert_equal_to_interpreter(graph, options=options, target=target)
        coded = [step for step in artifact.program.steps if step.offer.coded]
        assert len(coded) >= sum(node.macs > 0 for node in graph.nodes) - 2
