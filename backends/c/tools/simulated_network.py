"""An emitted network on a simulated core, run on tensors.

network = SimulatedNetwork.of(artifact, folder, load_target("cortex-m4f"))
(y,) = network.run([x])
network.profile([x]).instructions, network.footprint.flash
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ....specs import Target
from ..emit import CArtifact, entry_name
from ..write.ports import Port, from_memory, to_memory
from .elf import Footprint, read_elf
from .profile import Profile
from .simulate import SimulatedModel, Simulator
from .toolchain import build_image, target_compiler


@dataclass(frozen=True)
class SimulatedNetwork:
    """A network built for a core; tensors are those of the artifact's graph, in its order."""

    model: SimulatedModel
    footprint: Footprint
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    @staticmethod
    def of(
        artifact: CArtifact,
        folder: Path,
        target: Target,
        *,
        flags: Sequence[str] = (),
        alignment: int = 16,
        strict_alignment: bool = False,
    ) -> SimulatedNetwork:
        """Builds the artifact in `folder`; inputs and outputs are aligned to `alignment`."""
        entry = entry_name(artifact.name, artifact.ports)
        image = build_image(
            target_compiler(target), artifact.write(folder), folder / "net.elf", keep=(entry,), flags=flags
        )
        inputs = tuple(port for port in artifact.ports if port.is_input)
        outputs = tuple(port for port in artifact.ports if not port.is_input)
        model = SimulatedModel(
            Simulator(image, target=target, strict_alignment=strict_alignment),
            entry,
            input_bytes=[port.stored.bytes for port in inputs],
            output_bytes=[port.stored.bytes for port in outputs],
            regions={used.name: used.bytes for used in artifact.plan.regions},
            places=[port.place for port in artifact.ports],
            state_bytes=artifact.plan.state_bytes,
            weights=artifact.files.get(f"{artifact.name}_weights.bin", b""),
            alignment=alignment,
        )
        return SimulatedNetwork(model, read_elf(image).footprint, inputs, outputs)

    def run(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """The outputs for one set of inputs."""
        memories = self.model.run(self._stored(inputs))
        return [_read(port, memory) for port, memory in zip(self.outputs, memories, strict=True)]

    def profile(self, inputs: Sequence[Tensor]) -> Profile:
        """The counted run of one set of inputs."""
        return self.model.profile(self._stored(inputs))

    def _stored(self, inputs: Sequence[Tensor]) -> list[bytes]:
        return [to_memory(x, port.stored).tobytes() for x, port in zip(inputs, self.inputs, strict=True)]


def _read(port: Port, memory: bytes) -> Tensor:
    dtype = np.dtype(str(port.type.dtype.torch).removeprefix("torch."))
    return from_memory(np.frombuffer(memory, dtype), port.stored)
