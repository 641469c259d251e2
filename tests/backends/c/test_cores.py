"""Every integer operator on simulated cores computes the bytes of the interpreter, within the stack that is stated."""

from __future__ import annotations

import importlib.util
import shutil

import pytest

from fxpress.backends.c.emit import emit
from fxpress.backends.c.tools.simulated_network import SimulatedNetwork
from fxpress.ir import run_integer
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput

pytestmark = [
    pytest.mark.skipif(
        shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
    ),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="unicorn is not installed"),
]


@pytest.mark.parametrize(
    ("cpu", "isa"),
    [
        ("cortex-m0plus", "armv6-m"),
        pytest.param("cortex-m3", "armv7-m", marks=pytest.mark.slow),
        ("cortex-m4f", ""),
        pytest.param("cortex-m33", "", marks=pytest.mark.slow),
    ],
)
def test_every_integer_operator_on_a_simulated_core(cpu, isa, integer_operators, cortex_m4, tmp_path, draw):
    target = cortex_m4.model_copy(update={"isa": isa, "features": ()}) if isa else cortex_m4
    artifact = emit(integer_operators, COutput(name="net", self_test=0), target)
    network = SimulatedNetwork.of(artifact, tmp_path, load_target(cpu), flags=("-O2",))
    for seed in range(3):
        vector = [draw(v, 50 * seed + i) for i, v in enumerate(artifact.graph.inputs)]
        expected = run_integer(artifact.graph, vector)
        for port, got, wanted in zip(network.outputs, network.run(vector), expected, strict=True):
            assert got.equal(wanted), port.name
    assert network.model.stack_bytes <= int(artifact.macros["NET_STACK_BYTES"])
