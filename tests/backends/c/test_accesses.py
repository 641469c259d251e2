"""Estimated accesses of layers, against those that a simulated core makes."""

from __future__ import annotations

from collections import Counter

import pytest

from fxpress.backends.c import emit
from fxpress.backends.c.plan.accesses import accesses_of
from fxpress.backends.c.tools.simulate import AVAILABLE, Simulator
from fxpress.backends.c.tools.toolchain import build_image, target_compiler
from fxpress.backends.c.write.ports import to_memory
from fxpress.ir import parse, verify
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput

unicorn = pytest.importorskip("unicorn")
pytestmark = pytest.mark.skipif(not AVAILABLE, reason="the packages of fxpress[sim] are not installed")

X, W = "<scale=0.0625, zero=3>", "<scale=0.5, zero=0>"
PADDED = "padding=(1, 1, 1, 1)"
LAYERS = {
    "convolution": f"""graph(%x: i8[1x8x12x12]{X}) {{
      const %w: i8[16x8x3x3]{W}
      %y: i8[1x16x12x12]{X} = conv{{{PADDED}}}(%x, %w)
      return y: %y
    }}""",
    "convolution 1x1": f"""graph(%x: i8[1x32x8x8]{X}) {{
      const %w: i8[16x32x1x1]{W}
      %y: i8[1x16x8x8]{X} = conv(%x, %w)
      return y: %y
    }}""",
    "depthwise": f"""graph(%x: i8[1x16x12x12]{X}) {{
      const %w: i8[16x1x3x3]{W}
      %y: i8[1x16x12x12]{X} = conv{{{PADDED}, groups=16}}(%x, %w)
      return y: %y
    }}""",
    "linear": f"""graph(%x: i8[1x256]{X}) {{
      const %w: i8[32x256]{W}
      %y: i8[1x32]{X} = linear(%x, %w)
      return y: %y
    }}""",
    "sum": f"""graph(%x: i8[1x1024]{X}, %z: i8[1x1024]{X}) {{
      %y: i8[1x1024]{X} = add(%x, %z)
      return y: %y
    }}""",
    "function": f"""graph(%x: i8[1x1024]{X}) {{
      %y: i8[1x1024]<scale=0.0078125, zero=0> = tanh(%x)
      return y: %y
    }}""",
    "pool": f"""graph(%x: i8[1x16x16x16]{X}) {{
      %y: i8[1x16x8x8]{X} = max_pool{{kernel=(2, 2), stride=(2, 2)}}(%x)
      return y: %y
    }}""",
    "convolution in float": f"""graph(%x: f32[1x8x8x8]) {{
      const %w: f32[8x8x3x3]
      %y: f32[1x8x8x8] = conv{{{PADDED}}}(%x, %w)
      return y: %y
    }}""",
}


@pytest.mark.parametrize("core", ["cortex-m4f", "cortex-m0plus"])
@pytest.mark.parametrize("layer", LAYERS)
def test_the_estimate_is_within_a_factor_of_two(layer, core, fill, draw, tmp_path, compiler):
    compiler(core)
    target = load_target(core)
    artifact = emit(verify(parse(LAYERS[layer], fill=fill)), COutput(name="net", self_test=0), target)
    image = build_image(
        target_compiler(target), artifact.write(tmp_path), tmp_path / "net.elf", keep=("net_run",)
    )
    simulator = Simulator(image, target=target)
    blocks: dict[str, tuple[int, int]] = {}
    for number, port in enumerate(artifact.ports):
        address = simulator.allocate(port.stored.bytes)
        blocks[port.name] = address, port.stored.bytes
        if port.is_input:
            simulator.write(address, to_memory(draw(port.stored.value, number), port.stored).tobytes())
    blocks["arena"] = simulator.allocate(artifact.plan.arena_bytes), artifact.plan.arena_bytes
    counts: Counter[str] = Counter()

    def count(_, access, address, size, value, __):
        counts.update(name for name, (start, size) in blocks.items() if start <= address < start + size)

    simulator._engine.hook_add(unicorn.UC_HOOK_MEM_READ | unicorn.UC_HOOK_MEM_WRITE, count)
    assert simulator.call("net_run", *(address for address, _ in blocks.values())).return_value == 0
    (step,) = artifact.program.steps
    found = accesses_of(step)
    estimated = sum(found.operands) + sum(found.results) + found.working
    assert 0.5 <= estimated / sum(counts.values()) <= 2
    if found.working:
        assert 0.5 <= found.working / counts["arena"] <= 2.05
