"""Writes the golden files anew; read the difference before committing it."""

from pathlib import Path

import torch

from fxpress.backends.c import CArtifact, emit
from fxpress.ir import Value, parse, run_integer
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


def emitted_ring() -> CArtifact:
    """The C of a network with a state in place."""
    graph = parse((FOLDER / "ring.graph").read_text(encoding="utf-8"), fill=numbered)
    options = COutput(
        name="ring", states="in_place", layouts={"past": "ntc", "past_out": "ntc"}, package=(), self_test=3
    )
    frames, past = [torch.arange(4.0).view(1, 4, 1) - i for i in range(3)], torch.zeros(1, 4, 2)
    vectors = []
    for frame in frames:
        vectors.append([frame, past])
        past = run_integer(graph, [frame, past])[1]
    return emit(graph, options, HOST, vectors=vectors, states={"past": "past_out"})


if __name__ == "__main__":
    for name, data in {**emitted_ring().files, **emitted().files}.items():
        (FOLDER / name).write_bytes(data)
