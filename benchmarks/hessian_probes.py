"""Traces of layers by PyHessian, in an environment that has it; started by hessian.py.

    python benchmarks/hessian_probes.py CASE.pt ANSWER.json TOLERANCE

One layer at a time, everything else frozen: a trace of all layers at once would carry the cross terms between them.
PyHessian's own stopping rule, a small change of the mean, bounds no error: here probes are drawn, ten at a time, until
the 95 % confidence interval is within the tolerance on either side of the mean. The clock runs for PyHessian alone.
"""

from __future__ import annotations

import json
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from pyhessian import hessian  # type: ignore[import-not-found]  # only in its own environment
from scipy import stats
from torch import Tensor, nn

from fxpress.backends.torch_module import to_module
from fxpress.ir import parse

_AT_A_TIME = 10
_MOST_PROBES = 5000
_NEVER = float("-inf")  # a change of the mean that stops PyHessian


def main() -> int:
    case, answer, tolerance = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", message=".*create_graph=True.*")
    text, params, inputs, layers = torch.load(case, weights_only=True)
    module = to_module(parse(text, params=params))
    with torch.no_grad():
        targets = module(inputs).argmax(1)
    found = {layer: trace(module, layer, inputs, targets, tolerance) for layer in layers}
    answer.write_text(json.dumps(found))
    return 0


def trace(
    module: nn.Module, layer: str, inputs: Tensor, targets: Tensor, tolerance: float
) -> tuple[float, int, float]:
    """Mean over probes of v^T H v for one layer's weight, number of probes, CPU seconds."""
    weight = module.get_submodule(layer).weight
    for parameter in module.parameters():
        parameter.requires_grad_(parameter is weight)
        parameter.grad = None
    start = time.process_time()
    prober = hessian(module, nn.CrossEntropyLoss(), data=(inputs, targets), cuda=False)
    drawn: list[float] = []
    while len(drawn) < _MOST_PROBES:
        drawn += prober.trace(maxIter=_AT_A_TIME, tol=_NEVER)
        quantile = float(stats.t.ppf(0.975, len(drawn) - 1))
        if quantile * np.std(drawn, ddof=1) / len(drawn) ** 0.5 <= tolerance * abs(np.mean(drawn)):
            break
    return float(np.mean(drawn)), len(drawn), time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
