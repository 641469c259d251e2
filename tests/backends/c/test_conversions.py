"""Conversions of the emitted header: file to input, model to buffer, buffer to real."""

import ctypes
from pathlib import Path

import torch

from fxpress.backends.c import emit
from fxpress.backends.c.tools.toolchain import WARNINGS, find_compiler, link_shared
from fxpress.ir import parse
from fxpress.specs import COutput, Transform
from fxpress.specs.target import Target

GRAPH = parse("""
graph(%x: i8[1x4]<scale=0.05, zero=-2500>, %h: i16[1x4]<scale=0.001, zero=0>, %f: f32[1x4]) {
  return y: %x, h_out: %h, f_out: %f
}""")
TRANSFORMS = {"x": Transform(scale=0.5, offset=100.0), "f": Transform(scale=2.0, layout="nhw->nwh")}
CALLS = """
#include "net.h"
signed char x(float v) { return net_quantize_x(v); }
signed char file(float v) { return net_convert_x(v); }
short h(float v) { return net_quantize_h(v); }
float f(float v) { return net_convert_f(v); }
float y(signed char v) { return net_dequantize_y(v); }
"""


def test_the_header_converts_as_the_compiler_does(tmp_path: Path, host: Target) -> None:
    made = emit(GRAPH, COutput(name="net"), host, transforms=TRANSFORMS, states={"h": "h_out"})
    sources = made.write(tmp_path)
    (tmp_path / "calls.c").write_text(CALLS)
    flags = (*WARNINGS, "-I", str(tmp_path))
    path = link_shared(
        find_compiler("gcc"), [*sources, tmp_path / "calls.c"], tmp_path / "net.so", flags=flags
    )
    library = ctypes.CDLL(str(path))
    grids = [value.type.quantization for value in GRAPH.inputs]
    assert grids[0] is not None and grids[1] is not None
    numbers = torch.cat([torch.linspace(115, 135, 801), torch.tensor([-1e30, 0.0, 1e30, torch.nan])])
    for name, grid, values in (("x", grids[0], numbers), ("h", grids[1], numbers / 4 - 31)):
        function = getattr(library, name)
        function.argtypes, function.restype = (
            [ctypes.c_float],
            ctypes.c_short if name == "h" else ctypes.c_byte,
        )
        got = torch.tensor([function(float(value)) for value in values[:-1]])
        assert torch.equal(got, grid.quantize(values[:-1]))
        assert grid.qmin <= function(float("nan")) <= grid.qmax
    for name in ("file", "f"):
        getattr(library, name).argtypes = [ctypes.c_float]
    library.file.restype, library.f.restype, library.y.restype = ctypes.c_byte, ctypes.c_float, ctypes.c_float
    assert library.file(40.0) == int(grids[0].quantize(torch.tensor(120.0)))
    assert library.f(1.5) == 3.0
    wanted = grids[0].dequantize(torch.arange(-128, 128))
    assert torch.equal(torch.tensor([library.y(q) for q in range(-128, 128)]), wanted)


def test_the_header_says_how_inputs_are_made(host: Target) -> None:
    made = emit(GRAPH, COutput(name="net"), host, transforms=TRANSFORMS, states={"h": "h_out"})
    header = made.files["net.h"].decode()
    assert "file to model: value * 0.5f + 100.0f" in header
    assert "file to model: axes nhw->nwh; value * 2.0f + 0.0f" in header
    assert "state: the output h_out of the call before" in header


def test_the_recipe_of_a_state_is_that_of_its_start(host: Target) -> None:
    made = emit(
        GRAPH, COutput(name="net"), host, transforms={"h": Transform(scale=2.0)}, states={"h": "h_out"}
    )
    header = made.files["net.h"].decode()
    assert (
        "state: the output h_out of the call before; at the start file to model: value * 2.0f + 0.0f"
        in header
    )
