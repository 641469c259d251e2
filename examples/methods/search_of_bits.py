"""Bit widths by the integer program against a search with measured rewards, as of HAQ (Wang et al., CVPR 2019).

Both choose the bit widths of ResNet-8 within 37.5 % of int8's bytes from 24 images. The search measures 200
assignments: 100 at random, then 100 of hill climbing from the best one, which changes one layer or swaps the widths of
two. The metric is the loss of the chosen assignment on other images, as divergence from the float network.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random

import cifar_images
import torch
from torch import Tensor

from fxpress.compiler import compile_model
from fxpress.ir import Graph
from fxpress.passes.assign_bits import (
    BitCosts,
    Limit,
    bit_costs,
    bit_layers,
    make_program,
    mix_losses,
    solve_bits,
)
from fxpress.passes.sensitivity import measure_sensitivity

SPEC = Path(__file__).resolve().parent / "given" / "resnet8.yaml"
BITS, BUDGET = (2, 4, 8), 0.375
SAMPLES, MEASURED, EVALUATIONS = 24, 128, 200

Assignment = Mapping[str, tuple[int, int]]
Batches = Sequence[tuple[Tensor, ...]]


def measure(variant: str, seed: int, on: str) -> float:
    """Loss of the assignment that a method chooses, in nats."""
    graph = compile_model(SPEC, overrides=["data.evaluation=null"]).graph
    samples = _batches(f"calibration_{seed}", SAMPLES)
    costs = bit_costs(graph, bit_layers(graph, BITS, (8,), (), None), None, None)
    limit = Limit("weights", BUDGET * costs.whole["weights"], costs.fixed.get("weights", 0.0))
    if variant == "method":
        table = measure_sensitivity(
            graph,
            samples,
            method="gauss_newton",
            weight_bits=BITS,
            activation_bits=(),
            labels=None,
            progress=lambda what, done, total: None,
        )
        chosen: Assignment = solve_bits(make_program(costs, table, [limit])).widths
    else:
        chosen = searched(graph, costs, limit, samples, Random(seed))
    return _loss(graph, _batches(on, MEASURED), chosen)


def searched(graph: Graph, costs: BitCosts, limit: Limit, samples: Batches, random: Random) -> Assignment:
    """The best of all measured assignments within the budget."""
    names = [layer.name for layer in costs.layers]
    best: dict[str, tuple[int, int]] = {}
    least = float("inf")
    for evaluation in range(EVALUATIONS):
        while True:
            if evaluation < EVALUATIONS // 2:
                tried = {name: (random.choice(BITS), 8) for name in names}
            else:
                tried, (one, other) = dict(best), random.sample(names, 2)
                tried[one], tried[other] = random.choice(
                    [(tried[other], tried[one]), ((random.choice(BITS), 8), tried[other])]
                )
            bytes_ = sum(costs.amounts[name, widths]["weights"] for name, widths in tried.items())
            if bytes_ + limit.fixed <= limit.most:
                break
        loss = _loss(graph, samples, tried)
        if loss < least:
            best, least = tried, loss
    return best


def _loss(graph: Graph, samples: Batches, chosen: Assignment) -> float:
    return float(mix_losses(graph, samples, chosen, rounds_activations=False).mean())


def _batches(part: str, count: int) -> Batches:
    images = torch.from_numpy(getattr(cifar_images, part)()["x"][:count])
    return [(image,) for image in images.split(1)]
