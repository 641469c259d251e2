"""Names of inputs and outputs in the emitted C: parameters, macros and functions, for any names in the model."""

import subprocess
from pathlib import Path

import pytest

from fxpress.backends.c import emit
from fxpress.backends.c.tools.toolchain import WARNINGS, check_header, find_compiler, link_program
from fxpress.ir import Builder, Graph, TensorType
from fxpress.ir.ops.activation import Relu
from fxpress.specs import COutput
from fxpress.specs.target import Target


def graph(inputs: list[str], outputs: list[str]) -> Graph:
    """A graph with ports of these names; inputs and outputs alternate."""
    builder = Builder()
    taken = [builder.input(name, TensorType((1, 3))) for name in inputs]
    given = [builder.add(Relu(), taken[i % len(taken)], name=f"v{i}") for i in range(len(outputs))]
    return builder.build(given, output_names=outputs)


NAMES: dict[str, tuple[list[str], list[str], str, str]] = {
    "names of C": (["mfcc", "gain_2"], ["scores"], "mfcc gain_2 scores", "MFCC GAIN_2 SCORES"),
    "capitals and other marks": (
        ["Image"],
        ["class probs", "a.b"],
        "image class_probs a_b",
        "IMAGE CLASS_PROBS A_B",
    ),
    "words of C": (["int"], ["class"], "input_0 output_0", "INT CLASS"),
    "names of the emitted function": (
        ["arena", "memory", "t0"],
        ["net_run", "int8_t", "fxp_x"],
        "input_0 input_1 input_2 output_0 output_1 output_2",
        "ARENA MEMORY T0 NET_RUN INT8_T FXP_X",
    ),
    "equal in capitals": (["x", "y", "X"], ["z"], "input_0 y input_2 z", "INPUT_0 Y INPUT_2 Z"),
    "equal without marks": (["x"], ["a-b", "c", "a_b"], "x output_0 c output_2", "X OUTPUT_0 C OUTPUT_2"),
    "equal at both ends": (["x", "h"], ["y", "h"], "x h y output_1", "X H Y OUTPUT_1"),
    "numbers of other ports": (
        ["x", "X", "input_0"],
        ["input_1", "output_1"],
        "input_0 input_1 input_2 output_0 output_1",
        "INPUT_0 INPUT_1 INPUT_2 OUTPUT_0 OUTPUT_1",
    ),
    "a real offset of another": (["x", "x_real"], ["z"], "x input_1 z", "X INPUT_1 Z"),
    "digits and long names": (["0"], ["a" * 40], "input_0 output_0", "INPUT_0 OUTPUT_0"),
}


@pytest.mark.parametrize("case", NAMES)
def test_ports_have_their_own_names_where_c_allows_it(case: str, host: Target, tmp_path: Path) -> None:
    inputs, outputs, parameters, macros = NAMES[case]
    made = emit(graph(inputs, outputs), COutput(name="net"), host, vectors=[])
    assert [port.parameter for port in made.ports] == parameters.split()
    assert [port.macro for port in made.ports] == macros.split()
    assert len({port.parameter for port in made.ports}) == len(made.ports)
    sources = [*made.write(tmp_path), tmp_path / "main.c"]
    buffers = ", ".join(["buffer"] * len(made.ports))
    sizes = " + ".join(f"NET_{port.macro}_SIZE" for port in made.ports)
    (tmp_path / "main.c").write_text(
        f'#include "net.h"\nint main(void)\n{{\n    static float buffer[{sizes}];\n'
        f"    return net_run({buffers}, buffer);\n}}\n"
    )
    program = link_program(find_compiler("gcc"), sources, tmp_path / "main", flags=("-O1", *WARNINGS))
    assert subprocess.run([program], check=False).returncode == 0
    check_header(find_compiler("gcc"), tmp_path / "net.h")
