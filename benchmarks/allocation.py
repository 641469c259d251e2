"""Time to solve allocations of bits to proven optimality: `python benchmarks/allocation.py`.

Layers have random sizes and sensitivities and 4 widths each; budgets limit weight bytes and bit operations. The loss
of a layer decreases by a factor of about four per bit, as rounding noise does. Seconds are CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from fxpress.passes.assign_bits import BitProgram, Choice, LayerChoices, Limit, solve_bits

WIDTHS = (2, 4, 8, 16)


@dataclass(frozen=True)
class Row:
    """One solved program: CPU seconds, the proven gap, and the loss of the choice."""

    name: str
    seconds: float
    gap: float
    loss: float


def random_program(layers: int, *, share: float, seed: int) -> BitProgram:
    """A program whose budgets are the fraction `share` of the cost of 8 bits everywhere."""
    generator = np.random.default_rng(seed)
    sizes = np.exp(generator.uniform(np.log(100), np.log(100_000), layers)).round()
    reuse = np.exp(generator.uniform(0, np.log(1000), layers)).round()
    sensitivities = np.exp(generator.normal(0, 2, layers))
    items = tuple(
        LayerChoices(
            f"layer{index:04d}",
            tuple(
                Choice(
                    bits,
                    8,
                    float(sensitivity * 4.0**-bits * generator.uniform(0.5, 2)),
                    {"weight bytes": float(size * bits / 8), "bit operations": float(size * uses * bits * 8)},
                )
                for bits in WIDTHS
            ),
        )
        for index, (size, uses, sensitivity) in enumerate(zip(sizes, reuse, sensitivities, strict=True))
    )
    whole = {name: sum(item.choices[2].costs[name] for item in items) for name in items[0].choices[0].costs}
    return BitProgram(items, tuple(Limit(name, share * amount) for name, amount in whole.items()))


def main() -> None:
    """Solves one program for each seed and prints seconds and gap."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("-o", "--output", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    rows = []
    for share in (0.375, 0.5, 0.75):
        for seed in range(options.seeds):
            program = random_program(options.layers, share=share, seed=seed)
            start = time.process_time()
            solved = solve_bits(program)
            seconds = round(time.process_time() - start, 3)
            name = (
                f"{options.layers} layers x {len(WIDTHS)} widths x {len(program.limits)} limits, "
                f"{100 * share:g} %, seed {seed}"
            )
            rows.append(Row(name, seconds, solved.gap, solved.loss))
            print(f"{name}: {seconds:.2f} s, gap {solved.gap:.1e}")
    print(f"slowest: {max(row.seconds for row in rows):.2f} s")
    if options.output:
        options.output.write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")


if __name__ == "__main__":
    main()
