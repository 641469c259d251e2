"""The driver that runs emitted C under sanitizers: it carries bytes through, and what it is there for stops it."""

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

from fxpress.compiler.interface import Interface, Port
from fxpress.specs import load_target

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")

FILE = Path(__file__).parents[2] / "benchmarks" / "sanitized.py"
SIGNATURE = "int net_run(const int8_t *x, const int8_t *w, int8_t *y, void *arena)"


def port(name: str, size: int) -> Port:
    return Port(name=name, shape=(1, size), dtype="i8", c_dtype="i8", c_order=(0, 1))


def run(folder: Path, body: str) -> list[list[bytes]]:
    spec = importlib.util.spec_from_file_location("sanitized", FILE)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (folder / "net.h").write_text(f"#include <stdint.h>\n{SIGNATURE};\n")
    (folder / "net.c").write_text(f'#include "net.h"\n{SIGNATURE} {{ {body} return 0; }}\n')
    interface = Interface(
        target=load_target("host"),
        c_name="net",
        regions={"arena": 4},
        inputs=(port("x", 3), port("w", 1)),
        outputs=(port("y", 2),),
    )
    samples = [[bytes([1, 2, 3]), bytes([10])], [bytes([4, 5, 6]), bytes([20])]]
    return module.run_sanitized([folder / "net.c"], interface, samples, folder)


def test_inputs_and_outputs_go_through_in_order(tmp_path: Path) -> None:
    body = "(void)arena; y[0] = (int8_t)(x[0] + w[0]); y[1] = x[2];"
    assert run(tmp_path, body) == [[bytes([11, 3])], [bytes([24, 6])]]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("(void)arena; y[0] = x[3]; y[1] = w[0];", "heap-buffer-overflow"),
        ("((int8_t *)arena)[4] = x[0]; y[0] = w[0]; y[1] = 0;", "heap-buffer-overflow"),
        ("(void)arena; y[0] = (int8_t)((2147483647 + x[0]) >> 24); y[1] = w[0];", "signed integer overflow"),
        ("(void)arena; y[0] = (int8_t)(1 << (x[0] * 40)); y[1] = w[0];", "shift exponent 40"),
    ],
)
def test_undefined_behaviour_stops_it(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(tmp_path, body)
    assert message in caught.value.stderr.decode()
