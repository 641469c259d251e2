"""Every integer operator on simulated cores computes the bytes of the interpreter, within the stack that is stated."""

from __future__ import annotations

import importlib.util
import shutil

import numpy as np
import pytest

from fxpress.backends.c.emit import emit
from fxpress.backends.c.ports import from_memory, to_memory
from fxpress.backends.c.simulate import SimulatedModel, Simulator
from fxpress.backends.c.toolchain import compile_objects, find_compiler, link_image
from fxpress.ir import run_integer
from fxpress.specs.outputs import COutput

pytestmark = [
    pytest.mark.skipif(
        shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
    ),
    pytest.mark.skipif(importlib.util.find_spec("unicorn") is None, reason="unicorn is not installed"),
]


@pytest.mark.parametrize(
    ("cpu", "isa"),
    [("cortex-m0plus", "armv6-m"), ("cortex-m3", "armv7-m"), ("cortex-m4f", ""), ("cortex-m33", "")],
)
def test_every_integer_operator_on_a_simulated_core(cpu, isa, integer_operators, cortex_m4, tmp_path, draw):
    target = cortex_m4.model_copy(update={"isa": isa, "features": ()}) if isa else cortex_m4
    artifact = emit(integer_operators, COutput(name="net", self_test=0), target)
    for name, data in artifact.files.items():
        (tmp_path / name).write_bytes(data)
    compiler = find_compiler("arm-none-eabi-gcc", cpu=cpu)
    sources = [tmp_path / "net.c", tmp_path / "net_weights.c"]
    objects = compile_objects(compiler, sources, tmp_path, flags=("-O2",))
    image = link_image(compiler, objects, tmp_path / "net.elf", keep=("net_run",))
    ins = [port for port in artifact.ports if port.is_input]
    outs = [port for port in artifact.ports if not port.is_input]
    model = SimulatedModel(
        Simulator(image, cpu=cpu),
        "net_run",
        input_bytes=[port.stored.bytes for port in ins],
        output_bytes=[port.stored.bytes for port in outs],
        arena_bytes=artifact.plan.arena_bytes,
    )
    for seed in range(3):
        vector = [draw(v, 50 * seed + i) for i, v in enumerate(artifact.graph.inputs)]
        given = [to_memory(t, p.stored).tobytes() for t, p in zip(vector, ins, strict=True)]
        for port, got, wanted in zip(
            outs, model.run(given), run_integer(artifact.graph, vector), strict=True
        ):
            memory = np.frombuffer(got, to_memory(wanted, port.stored).dtype)
            assert from_memory(memory, port.stored).equal(wanted), port.name
    assert model.stack_bytes <= int(artifact.macros["NET_STACK_BYTES"])
