"""Flash of the MLPerf Tiny networks at several widths, predicted and linked; bytes of code of each kernel.

    python benchmarks/code_size.py [ic kws vww ad sww] [--shares 100 50 25]

The formulas of `code_bytes` in `backends/c/kernels` are fitted to what this prints: arm-none-eabi-gcc 12.2, -O3,
-mcpu=cortex-m4. Functions of kernels are kept apart (noinline) to be told one from another. A compiler that merges
equal parts of functions counts them at the first, so that the sizes of one kernel spread.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from fxpress.backends.c.elf import Elf, read_elf
from fxpress.backends.c.toolchain import build_image, find_compiler
from fxpress.compiler import Compiled, compile_model
from fxpress.compiler.table import text_table

SPECS = Path(__file__).resolve().parents[1] / "examples" / "mlperf_tiny"
NETWORKS = ("ic", "kws", "vww", "ad", "sww")
PASSES = (
    "passes=[{{pass: clean}}, {{pass: prune, score: random, allocation: uniform, budget: {{channels: {share} %}}}}, "
    "{{pass: fuse}}, {{pass: quantize}}, {{pass: remove_dead_channels}}]"
)


@dataclass(frozen=True, slots=True)
class Size:
    """Bytes of code of one function of a kernel."""

    kernel: str
    predicted: int
    linked: int


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("networks", nargs="*", default=NETWORKS, metavar="network")
    parser.add_argument(
        "--shares", nargs="*", type=int, default=[100, 60, 30], help="percent of the channels"
    )
    options = parser.parse_args()
    rows: list[tuple[str, ...]] = []
    sizes: list[Size] = []
    for name in options.networks:
        for share in options.shares:
            compiled = compile_model(
                SPECS / f"{name}.yaml",
                overrides=["data.calibration.samples=4", PASSES.format(share=share)],
                enforce_budget=False,
            )
            assert compiled.c is not None
            linked, predicted = linked_image(compiled).footprint.flash, compiled.c.prediction.flash_bytes
            rows.append((name, f"{share} %", f"{predicted:,}", f"{linked:,}", f"{predicted / linked:.3f}"))
            sizes += kernel_sizes(compiled)
    print(text_table(("network", "channels", "predicted B", "linked B", "ratio"), rows), "\n")
    print(text_table(("kernel", "functions", "predicted B", "linked B"), list(_means(sizes))))


def linked_image(compiled: Compiled, *, apart: bool = False) -> Elf:
    """The network linked for a Cortex-M4, with the functions of kernels inlined or `apart`."""
    assert compiled.c is not None
    name = compiled.c.name
    with tempfile.TemporaryDirectory(prefix="fxpress-size-") as directory:
        folder = Path(directory)
        for file, data in compiled.c.files.items():
            text = data.decode()
            if apart and file == f"{name}.c":
                text = re.sub(
                    r"^static void (\w+)\(", r"static __attribute__((noinline)) void \1(", text, flags=re.M
                )
            (folder / file).write_text(text)
        sources = [folder / f"{name}.c", folder / f"{name}_weights.c"]
        compiler = find_compiler("arm-none-eabi-gcc", cpu="cortex-m4f")
        return read_elf(build_image(compiler, sources, folder / "net.elf", keep=[f"{name}_run"]))


def kernel_sizes(compiled: Compiled) -> Iterator[Size]:
    """A row for each function that a step calls; parts that were split off count with it."""
    assert compiled.c is not None
    found: dict[object, tuple[str, str, int]] = {}
    for number, step in enumerate(compiled.c.program.steps):
        chosen = step.implementation
        for call in chosen.calls:
            symbol = f"{compiled.c.name}_{step.operator}_{number}"
            found.setdefault(call.function.key, (symbol, chosen.kernel, chosen.cost.code_bytes))
    linked = _symbol_sizes(linked_image(compiled, apart=True), [symbol for symbol, _, _ in found.values()])
    for symbol, kernel, predicted in found.values():
        yield Size(kernel, predicted, linked[symbol])


def _symbol_sizes(image: Elf, symbols: list[str]) -> Mapping[str, int]:
    """Bytes of each symbol and of what is named after it; functions of one address count once."""
    total = dict.fromkeys(symbols, 0)
    for function in {f.address: f for f in image.functions}.values():
        owners = [s for s in symbols if re.fullmatch(rf"{s}([_.]\D.*)?", function.name)]
        if owners:
            total[owners[0]] += function.size
    return total


def _means(sizes: list[Size]) -> Iterator[tuple[str, str, str, str]]:
    by_kernel: dict[str, list[Size]] = defaultdict(list)
    for size in sizes:
        by_kernel[size.kernel].append(size)
    for kernel, found in sorted(by_kernel.items()):
        predicted = sum(size.predicted for size in found) / len(found)
        least, most = min(size.linked for size in found), max(size.linked for size in found)
        linked = sum(size.linked for size in found) / len(found)
        yield kernel, str(len(found)), f"{predicted:.0f}", f"{linked:.0f} ({least} to {most})"


if __name__ == "__main__":
    main()
