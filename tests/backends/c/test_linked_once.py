"""Kernels that several layers share are linked once, whatever constants each layer passes."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from fxpress.backends.c import CArtifact, emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.backends.c.tools.toolchain import Compiler, build_image
from fxpress.ir import Value, parse
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput

Q = "<scale=0.0625, zero=-3>"
W = "<scale=0.0078125, zero=0>"
LAYERS = 3
SHARED = "FXP_SHARED void"


def chain(fill: Callable[[Value], Tensor], core: str) -> CArtifact:
    """Convolutions of one shape in a row, each with weights of its own, and one of another shape."""
    layers = range(LAYERS)
    constants = "\n".join(f"const %w{n}: i8[8x8x3x3]{W}" for n in layers)
    convolutions = "\n".join(
        f"%y{n + 1}: i8[1x8x9x9]{Q} = conv{{padding=(1, 1, 1, 1)}}(%y{n}, %w{n})" for n in layers
    )
    graph = parse(
        f"""graph(%y0: i8[1x8x9x9]{Q}) {{
        {constants}
        const %last: i8[2x8x9x9]{W}
        {convolutions}
        %z: i8[1x2x1x1]{Q} = conv(%y{LAYERS}, %last)
        return z: %z
        }}""",
        fill=fill,
    )
    return emit(graph, COutput(name="net", self_test=0), load_target(core))


def copies(artifact: CArtifact, compiler: Compiler, folder: Path) -> int:
    """Functions that the linker keeps of the shared kernel, clones included."""
    image = build_image(compiler, artifact.write(folder), folder / "net.elf", keep=["net_run"])
    (shared,) = (f.symbol for f in artifact.source.functions if f.shared)
    return sum(re.fullmatch(rf"{shared}(\.\w+)*", f.name) is not None for f in read_elf(image).functions)


def test_only_kernels_that_several_layers_call_are_marked(fill: Callable[[Value], Tensor]) -> None:
    artifact = chain(fill, "cortex-m0plus")
    shared, single = artifact.source.functions
    assert SHARED in shared.text and SHARED not in single.text


@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m3", "riscv32"])
def test_a_shared_kernel_is_linked_once(
    core: str, fill: Callable[[Value], Tensor], compiler: Callable[[str], Compiler], tmp_path: Path
) -> None:
    assert copies(chain(fill, core), compiler(core), tmp_path) == 1


def test_without_the_mark_gcc_clones_the_kernel(
    fill: Callable[[Value], Tensor], compiler: Callable[[str], Compiler], tmp_path: Path
) -> None:
    artifact = chain(fill, "cortex-m0plus")
    source = artifact.files["net.c"].decode()
    unmarked = replace(artifact, files={**artifact.files, "net.c": source.replace("noclone, ", "").encode()})
    assert copies(unmarked, compiler("cortex-m0plus"), tmp_path) > 1
