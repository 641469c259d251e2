"""Kernels that several layers share are linked once, for any constants that the layers pass."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fxpress.backends.c import CArtifact, emit
from fxpress.backends.c.tools.elf import read_elf
from fxpress.backends.c.tools.toolchain import Compiler, build_image
from fxpress.ir import Graph, Value, parse
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target

Q = "<scale=0.0625, zero=-3>"
W = "<scale=0.0078125, zero=0>"
LAYERS = 3
SHARED = "FXP_NOCLONE void"


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


def layers(
    fill: Callable[[Value], Tensor],
    x: str,
    weight: str,
    op: str,
    *,
    element: str = "i8",
    bits: int = 8,
    residual: bool = False,
    clamp: str = "",
) -> Graph:
    """Three layers of one shape in a row, of different scales and zero points; the last one with a clamp, if any."""
    scales = [(0.0625, -3), (0.05, 6), (0.07, -11), (0.06, 9)]
    if element == "i16":
        scales = [(scale / 256, 0) for scale, _ in scales]
    types = [
        f"{element}[{x}]<{'' if element == 'i8' else 'bits=16, '}scale={scale}, zero={zero}>"
        for scale, zero in scales
    ]
    constants = "\n".join(
        f"const %w{n}: i8[{weight}]<bits={bits}, scale=0.0078125, zero=0>" for n in range(3)
    )
    added = [f", none, %y{n}" if residual else "" for n in range(3)]
    ops = [op, op, f"{op}{{clamp=({clamp})}}" if clamp else op]
    steps = "\n".join(f"%y{n + 1}: {types[n + 1]} = {ops[n]}(%y{n}, %w{n}{added[n]})" for n in range(LAYERS))
    return parse(f"graph(%y0: {types[0]}) {{\n{constants}\n{steps}\nreturn z: %y{LAYERS}\n}}", fill=fill)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(
    ("x", "weight", "op", "form"),
    [
        ("1x8x3x5", "8x8x1x1", "conv", {}),
        ("1x7x3x5", "7x7x1x1", "conv", {"bits": 4}),
        ("1x5x24", "24x24", "linear", {"element": "i16"}),
        ("1x24", "24x24", "linear", {}),
        ("1x23", "23x23", "linear", {"bits": 2}),
    ],
)
def test_layers_that_differ_in_scales_alone_call_one_function(
    x: str,
    weight: str,
    op: str,
    form: dict[str, Any],
    residual: bool,
    fill: Callable[[Value], Tensor],
    cortex_m4: Target,
    assert_equal_to_interpreter: Callable[..., CArtifact],
) -> None:
    graph = layers(fill, x, weight, op, residual=residual, **form)
    artifact = assert_equal_to_interpreter(graph, target=cortex_m4)
    (function,) = artifact.source.functions
    number = "int32_t offset" if residual else "int32_t zero_point"
    assert (number in function.text) == (residual or "element" not in form), "all zero points of int16 are 0"


def test_a_layer_of_other_bounds_and_a_layer_alone_have_their_zero_points_in_their_functions(
    fill: Callable[[Value], Tensor],
    cortex_m4: Target,
    assert_equal_to_interpreter: Callable[..., CArtifact],
) -> None:
    graph = layers(fill, "1x8x3x5", "8x8x1x1", "conv", clamp="0.1, 0.3")
    shared, single = assert_equal_to_interpreter(graph, target=cortex_m4).source.functions
    assert "zero_point" in shared.text and "zero_point" not in single.text
