"""Layers with weights of 8, 4 and 2 bits on a simulated Cortex-M4: instructions, cycles, bytes, beside int8.

    python benchmarks/low_bits.py             # table, and benchmarks/results/low_bits.json

Each layer is compiled as a network of its own, with the kernel that the compiler chooses, run on the simulated core and
held byte for byte against the integer graph. A ratio is against int8 in the kernel chosen for int8. A 3x3 convolution
over an odd number of pixels has no whole Winograd tiles: there all bits run in the direct kernel.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fxpress.backends.c import SimulatedNetwork, emit
from fxpress.compiler import text_table
from fxpress.ir import Graph, Value, parse, run_integer
from fxpress.specs import COutput, load_target

RESULTS = Path(__file__).resolve().parent / "results" / "low_bits.json"
CORE = "cortex-m4f"
BITS = (8, 4, 2)


@dataclass(frozen=True)
class Layer:
    """A layer in the text form of graphs: shapes of input, weight and result, and the operator."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    op: str

    def graph(self, bits: int) -> Graph:
        """The layer as a network, with weights drawn over the whole range of `bits` bits."""
        x, weight, y = ("x".join(map(str, shape)) for shape in (self.x, self.weight, self.y))
        scale, limit = 2.0 ** -(bits + 2), 1 << (bits - 1)
        text = f"""graph(%x: i8[{x}]<scale=0.0625, zero=-3>) {{
          const %w: i8[{weight}]<{"" if bits == 8 else f"bits={bits}, "}scale={scale}, zero=0>
          const %b: i32[{self.weight[0]}]<scale={0.0625 * scale}, zero=0>
          %y: i8[{y}]<scale=0.25, zero=6> = {self.op}(%x, %w, %b)
          return y: %y
        }}"""

        def fill(value: Value) -> torch.Tensor:
            low, end = (-1000, 1000) if value.name == "b" else (-limit, limit)
            generator = torch.Generator().manual_seed(bits)
            return torch.randint(
                low, end, value.type.shape, generator=generator, dtype=value.type.dtype.torch
            )

        return parse(text, fill=fill)


PADDED = "conv{padding=(1, 1, 1, 1)}"
LAYERS = (
    Layer("1x1 64->64, 25x5", (1, 64, 25, 5), (64, 64, 1, 1), (1, 64, 25, 5), "conv"),
    Layer("1x1 16->32, 24x24", (1, 16, 24, 24), (32, 16, 1, 1), (1, 32, 24, 24), "conv"),
    Layer("3x3 16->16, 32x32", (1, 16, 32, 32), (16, 16, 3, 3), (1, 16, 32, 32), PADDED),
    Layer("3x3 16->16, 31x31", (1, 16, 31, 31), (16, 16, 3, 3), (1, 16, 31, 31), PADDED),
    Layer("3x3 32->32, 16x16", (1, 32, 16, 16), (32, 32, 3, 3), (1, 32, 16, 16), PADDED),
    Layer("3x3 64->64, 8x8", (1, 64, 8, 8), (64, 64, 3, 3), (1, 64, 8, 8), PADDED),
    Layer("depthwise 3x3 64, 25x5", (1, 64, 25, 5), (64, 1, 3, 3), (1, 64, 25, 5), PADDED[:-1] + ", groups=64}"),
    Layer("linear 640->128", (1, 640), (128, 640), (1, 128), "linear"),
)  # fmt: skip


@dataclass(frozen=True)
class Result:
    """One layer at one width; `weight_bytes` are those in flash, as packed for the kernel, without biases and scales.

    Ratios are against int8.
    """

    layer: str
    bits: int
    kernel: str
    instructions: int
    predicted_instructions: int
    cycles: int
    weight_bytes: int
    flash_bytes: int
    arena_bytes: int
    instructions_ratio: float
    weight_bytes_ratio: float


def measure(layer: Layer, bits: int, *, beside: Result | None = None) -> Result:
    """Figures of a layer, whose bytes are checked against `run_integer`; `beside` is the same layer in int8."""
    artifact = emit(layer.graph(bits), COutput(name="net", self_test=0), load_target(CORE))
    x = artifact.graph.inputs[0].type.shape
    sample = torch.randint(-128, 128, x, generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    with tempfile.TemporaryDirectory(prefix="fxpress-low-bits-") as folder:
        network = SimulatedNetwork.of(artifact, Path(folder), load_target(CORE))
    if not network.run([sample])[0].equal(run_integer(artifact.graph, [sample])[0]):
        raise AssertionError(f"{layer.name}, {bits} bits: the core and the integer graph differ")
    profile = network.profile([sample])
    assert profile.cycles is not None
    node = artifact.prediction.nodes[0]
    weight_bytes = node.constant_bytes - 8 * layer.weight[0]
    return Result(
        layer=layer.name,
        bits=bits,
        kernel=node.kernel,
        instructions=profile.instructions,
        predicted_instructions=artifact.prediction.instructions,
        cycles=profile.cycles,
        weight_bytes=weight_bytes,
        flash_bytes=network.footprint.flash,
        arena_bytes=artifact.plan.arena_bytes,
        instructions_ratio=round(profile.instructions / beside.instructions, 3) if beside else 1.0,
        weight_bytes_ratio=round(weight_bytes / beside.weight_bytes, 3) if beside else 1.0,
    )


def table(results: list[Result]) -> str:
    """The results, with a layer's widths in consecutive lines."""
    header = ("layer", "bits", "kernel", "instructions", "beside int8", "predicted", "cycles", "weight bytes",
              "beside int8", "flash", "arena")  # fmt: skip
    rows = [
        (r.layer, f"{r.bits}", r.kernel, f"{r.instructions:,}", f"{r.instructions_ratio:.2f}x",
         f"{r.predicted_instructions:,}", f"{r.cycles:,}", f"{r.weight_bytes:,}", f"{r.weight_bytes_ratio:.2f}x",
         f"{r.flash_bytes:,}", f"{r.arena_bytes:,}")
        for r in results
    ]  # fmt: skip
    return text_table(header, rows)


def main() -> None:
    """Measures, prints, writes."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    torch.set_num_threads(1)
    results: list[Result] = []
    for layer in LAYERS:
        int8 = measure(layer, 8)
        results += [int8, *(measure(layer, bits, beside=int8) for bits in BITS[1:])]
    print(table(results))
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({"core": CORE, "layers": [asdict(r) for r in results]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
