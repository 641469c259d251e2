"""Writes the golden files anew; read the difference before committing it."""

from pathlib import Path

import torch

from fxpress.backends.c import CArtifact, emit
from fxpress.ir import Value, parse
from fxpress.specs.outputs import COutput
from fxpress.specs.target import Target, Toolchain

FOLDER = Path(__file__).parent
HOST = Target(name="host", description="a computer", isa="host", toolchain=Toolchain(commands=("gcc",)))


def numbered(value: Value) -> torch.Tensor:
    """A constant of small integers that differ."""
    return (torch.arange(value.type.numel) % 7 - 3).view(value.type.shape).to(value.type.dtype.torch)


def emitted() -> CArtifact:
    """The C of the golden graph."""
    graph = parse((FOLDER / "net.graph").read_text(encoding="utf-8"), fill=numbered)
    return emit(graph, COutput(name="net"), HOST, vectors=[[torch.arange(-8.0, 8.0).view(1, 1, 4, 4) / 8]])


if __name__ == "__main__":
    for name, data in emitted().files.items():
        (FOLDER / name).write_bytes(data)
