"""Layers whose weights are zero in blocks of four, on each core: instructions or cycles, and the break-even density.

    python benchmarks/sparse_blocks.py [--cores cortex-m4f ...]   # table, and benchmarks/results/sparse_blocks.json
    python benchmarks/sparse_blocks.py --network                  # examples/sparse_blocks/lenet300.yaml, printed

The density is the share of the blocks that are not zero. Each layer is compiled as a network of its own and run on the
simulated core, and held byte for byte against the integer graph: with all weights, in the kernel that is selected, and
with 5 and 20 % of the blocks in the kernel that skips blocks. The work of that kernel is linear in the number of
blocks; the break-even density is where it equals the kernel of all weights. The compiler selects by its own prediction.
The network is trained as in its spec, with and without zeros, and runs on a Cortex-M4.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from fxpress.backends.c import SimulatedNetwork, emit, predict
from fxpress.compiler import compile_model, text_table
from fxpress.ir import Graph, Value, parse, run_integer
from fxpress.specs import COutput, Target, load_target

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "sparse_blocks.json"
NETWORK = ROOT / "examples" / "sparse_blocks" / "lenet300.yaml"
CORES = ("cortex-m0plus", "cortex-m3", "cortex-m4f", "cortex-m7", "cortex-m33", "riscv32")
DENSITIES = (0.05, 0.2)
BLOCK = 4
OPTIONS = COutput(name="net", self_test=0)
_STEPS = 7  # halvings of the interval of densities in which the selection changes


@dataclass(frozen=True)
class Layer:
    """A layer in the text form of graphs: shapes of input, weight and result, and the operator."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    y: tuple[int, ...]
    op: str

    def graph(self, density: float) -> Graph:
        """The layer with this share of blocks that are not zero; a larger share includes those of a smaller one."""
        x, weight, y = ("x".join(map(str, shape)) for shape in (self.x, self.weight, self.y))
        text = f"""graph(%x: i8[{x}]<scale=0.0625, zero=-3>) {{
          const %w: i8[{weight}]<scale=0.0009765625, zero=0>
          const %b: i32[{self.weight[0]}]<scale=0.00006103515625, zero=0>
          %y: i8[{y}]<scale=0.25, zero=6> = {self.op}(%x, %w, %b)
          return y: %y
        }}"""

        def fill(value: Value) -> torch.Tensor:
            shape, generator = value.type.shape, torch.Generator().manual_seed(0)
            if value.name == "b":
                return torch.randint(-1000, 1000, shape, generator=generator, dtype=torch.int32)
            drawn = torch.randint(-128, 128, shape, generator=generator, dtype=torch.int8)
            order = torch.randperm(value.type.numel // BLOCK, generator=generator)
            kept = (order < density * len(order)).view(shape[0], shape[1] // BLOCK, *shape[2:])
            return drawn * kept.repeat_interleave(BLOCK, dim=1)

        return parse(text, fill=fill)


LAYERS = (
    Layer("linear 256 to 128", (1, 256), (128, 256), (1, 128), "linear"),
    Layer("1x1 convolution, 64 channels, 8x8", (1, 64, 8, 8), (64, 64, 1, 1), (1, 64, 8, 8), "conv"),
    Layer("3x3 convolution, 32 channels, 8x8", (1, 32, 8, 8), (32, 32, 3, 3), (1, 32, 8, 8),
          "conv{padding=(1, 1, 1, 1)}"),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One layer on one core; `unit` is cycles on a core with published timing, else instructions."""

    core: str
    layer: str
    unit: str
    dense_kernel: str
    dense: int
    sparse: tuple[int, ...]
    break_even_density: float
    selected_below_density: float
    dense_flash_bytes: int
    sparse_flash_bytes: tuple[int, ...]


@dataclass(frozen=True)
class _Run:
    kernel: str
    took: int
    unit: str
    flash_bytes: int
    arena_bytes: int


def measure(core: str, layer: Layer) -> Row:
    """The row of a layer on a core; AssertionError if the core and the integer graph differ."""
    target = load_target(core).model_copy(update={"ram": None, "flash": None, "stack": None})
    dense, low, high = (_run(layer.graph(density), target) for density in (1.0, *DENSITIES))
    assert dense.kernel != low.kernel == high.kernel == "block_sparse", f"{core}, {layer.name}"
    slope = (high.took - low.took) / (DENSITIES[1] - DENSITIES[0])
    return Row(
        core,
        layer.name,
        dense.unit,
        dense.kernel,
        dense.took,
        (low.took, high.took),
        round(DENSITIES[0] + (dense.took - low.took) / slope, 3),
        round(_selected_below(layer, target), 2),
        dense.flash_bytes,
        (low.flash_bytes, high.flash_bytes),
    )


def network_rows() -> list[tuple[str, ...]]:
    """The network with nearly all blocks and with a tenth of them: flash, arena, cycles, correct validation images."""
    rows = []
    for sparsity in ("0.1 %", "90 %"):
        compiled = compile_model(NETWORK, overrides=[f"passes[1].sparsity={sparsity}"])
        unlimited = load_target("cortex-m4f").model_copy(update={"ram": None, "flash": None})
        run, integer = _run(compiled.graph, unlimited), compiled.report.measurements[-1]
        sizes = (f"{size:,}" for size in (run.flash_bytes, run.arena_bytes, run.took))
        rows.append((sparsity, *sizes, f"{integer.value:.2f} {integer.unit}"))
    return rows


def _run(graph: Graph, target: Target) -> _Run:
    artifact = emit(graph, OPTIONS, target)
    x = artifact.graph.inputs[0].type.shape
    sample = torch.randint(-128, 128, x, generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    with tempfile.TemporaryDirectory(prefix="fxpress-blocks-") as folder:
        network = SimulatedNetwork.of(artifact, Path(folder), target)
        assert network.run([sample])[0].equal(run_integer(artifact.graph, [sample])[0])
        profile = network.profile([sample])
    timed = profile.cycles is not None
    took = profile.cycles if profile.cycles is not None else profile.instructions
    kernel = artifact.prediction.nodes[0].kernel
    unit, arena_bytes = "cycles" if timed else "instructions", artifact.plan.arena_bytes
    return _Run(kernel, took, unit, network.footprint.flash, arena_bytes)


def _selected_below(layer: Layer, target: Target) -> float:
    """The density up to which the compiler selects the kernel that skips blocks, where speed is all that counts."""
    low, high = DENSITIES[1], 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        kernel = predict(layer.graph(middle), target, options=OPTIONS).nodes[0].kernel
        low, high = (middle, high) if kernel == "block_sparse" else (low, middle)
    return low


def table(rows: list[Row]) -> str:
    """Rows by layer and core."""
    header = ("core", "layer", "unit", "all weights", *(f"{d:.0%} of the blocks" for d in DENSITIES),
              "break-even", "selected below", "flash", *(f"at {d:.0%}" for d in DENSITIES))  # fmt: skip
    return text_table(header, [_cells(row) for row in rows])


def _cells(row: Row) -> tuple[str, ...]:
    return (row.core, row.layer, row.unit, f"{row.dense:,}", *(f"{took:,}" for took in row.sparse),
            f"{row.break_even_density:.0%}", f"{row.selected_below_density:.0%}", f"{row.dense_flash_bytes:,}",
            *(f"{size:,}" for size in row.sparse_flash_bytes))  # fmt: skip


def main() -> None:
    """Measures, prints, writes."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cores", nargs="*", choices=CORES, default=CORES)
    parser.add_argument("--network", action="store_true", help="the network alone")
    options = parser.parse_args()
    cores = options.cores
    torch.set_num_threads(1)
    if options.network:
        print(text_table(("blocks that are zero", "flash", "arena", "cycles", "correct"), network_rows()))
        return
    rows = [measure(core, layer) for core in cores for layer in LAYERS]
    print(table(rows))
    RESULTS.write_text(json.dumps({"block": BLOCK, "rows": [asdict(row) for row in rows]}, indent=2) + "\n")


if __name__ == "__main__":
    main()
