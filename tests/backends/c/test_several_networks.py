"""Several networks in one firmware on a simulated Cortex-M4: one arena for all, and one network for several callers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fxpress.backends.c.emit import CArtifact, emit
from fxpress.backends.c.tools.simulate import Simulator
from fxpress.backends.c.tools.toolchain import build_image, target_compiler
from fxpress.backends.c.write.ports import to_memory
from fxpress.ir import parse, run_integer
from fxpress.specs import load_target
from fxpress.specs.outputs import COutput

pytestmark = pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None, reason="arm-none-eabi-gcc is not installed"
)
SMALL = """graph(%x: i8[1x3x8x8]<scale=0.1, zero=2>) {
  const %w: i8[8x3x3x3]<scale=0.02, zero=0>
  const %v: i8[4x8x3x3]<scale=0.02, zero=0>
  %a: i8[1x8x8x8]<scale=0.2, zero=-5> = conv{padding=(1, 1, 1, 1), clamp=(0.0, inf)}(%x, %w)
  %y: i8[1x4x6x6]<scale=0.4, zero=0> = conv(%a, %v)
  return y: %y
}"""
LARGE = SMALL.replace("8x8]", "16x16]").replace("6x6]", "14x14]")
RING = (Path(__file__).parent / "golden" / "ring.graph").read_text(encoding="utf-8")
CALLS = 6


class Firmware:
    """Networks that are linked into one image, with one arena that is as large as the largest needs."""

    def __init__(self, artifacts: dict[str, CArtifact], folder: Path) -> None:
        target = load_target("cortex-m4f")
        sources = [source for artifact in artifacts.values() for source in artifact.write(folder)]
        functions = {f"{name}_{'step' if a.plan.state_bytes else 'run'}" for name, a in artifacts.items()}
        functions |= {f"{name}_reset" for name, a in artifacts.items() if a.plan.state_bytes}
        image = build_image(
            target_compiler(target), sources, folder / "firmware.elf", keep=tuple(sorted(functions))
        )
        self.core = Simulator(image, target=target)
        self.arena = self.core.allocate(max(a.plan.arena_bytes for a in artifacts.values()), alignment=64)

    def call(self, function: str, *given: int) -> None:
        """A call that has to return 0."""
        assert self.core.call(function, *given).return_value == 0

    def place(self, tensor: Tensor, artifact: CArtifact, port: int = 0) -> int:
        """The address of a tensor as C reads it."""
        return self.core.place(to_memory(tensor, artifact.ports[port].stored).tobytes(), alignment=8)


def emitted(text: str, name: str, fill, **options) -> CArtifact:
    return emit(parse(text, fill=fill), COutput(name=name, self_test=0, **options), load_target("cortex-m4f"))


def test_two_networks_share_an_arena(fill, draw, tmp_path):
    nets = {name: emitted(text, name, fill) for name, text in (("small", SMALL), ("large", LARGE))}
    assert nets["small"].plan.arena_bytes < nets["large"].plan.arena_bytes
    firmware = Firmware(nets, tmp_path)
    for seed in range(CALLS):
        for name, artifact in nets.items():
            x = draw(artifact.graph.inputs[0], seed)
            y = firmware.core.allocate(artifact.ports[1].stored.bytes)
            firmware.call(f"{name}_run", firmware.place(x, artifact), y, firmware.arena)
            (expected,) = run_integer(artifact.graph, [x])
            stored = to_memory(expected, artifact.ports[1].stored)
            assert firmware.core.read(y, stored.nbytes) == stored.tobytes()


def test_two_callers_with_two_states_do_not_see_each_other(fill, draw, tmp_path):
    options = {"states": "in_place", "layouts": {"past": "ntc", "past_out": "ntc"}}
    artifact = emit(
        parse(RING, fill=fill),
        COutput(name="ring", self_test=0, **options),
        load_target("cortex-m4f"),
        states={"past": "past_out"},
    )
    firmware = Firmware({"ring": artifact, "large": emitted(LARGE, "large", fill)}, tmp_path)
    plan, y = artifact.plan, firmware.core.allocate(64)
    states = [firmware.core.allocate(plan.state_bytes, alignment=plan.state_alignment) for _ in range(2)]
    frames = [
        [draw(artifact.graph.inputs[0], 2 * call + caller) for call in range(CALLS)] for caller in range(2)
    ]
    found: list[list[bytes]] = [[], []]
    for state in states:
        firmware.call("ring_reset", state)
    for call in range(CALLS):
        for caller, state in enumerate(states):
            x = firmware.place(frames[caller][call], artifact)
            firmware.call("ring_step", x, state, y, firmware.arena)
            found[caller].append(firmware.core.read(y, artifact.ports[2].stored.bytes))
    for caller in range(2):
        past = torch.full((1, 4, 2), -3, dtype=torch.int8)  # its zero point
        for call in range(CALLS):
            result, past = run_integer(artifact.graph, [frames[caller][call], past])
            assert found[caller][call] == result.numpy().tobytes()
    assert found[0] != found[1]
