"""Speed of a decoder with integer weights: one token, and a prompt of 128 tokens, on one thread.

    python benchmarks/llm.py        # make bench-llm

The decoder has 124.7 million random weights (`random_llama.py`). All forms run in turns within one process; a figure
is CPU time, a speedup the median of the ratios to float32 of the same turn, and the relative error that of the logits
against float32. `no compiler` is the emitted module where no C compiler is found.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from random_llama import Llama
from torch import Tensor, nn

from fxpress.backends.torch_module import emit
from fxpress.compiler import capture, text_table
from fxpress.ir import Graph
from fxpress.passes import weight_only
from fxpress.specs.options import WeightOnlyOptions

RESULTS = Path(__file__).parent / "results" / "llm.json"
STEPS = {"decode": (1, 15), "prefill": (128, 5)}  # tokens, rounds
FORMS: Mapping[str, Mapping[str, Any]] = {  # any: values of options
    "int8, a scale for each output": {"weights": "int8", "group_size": None},
    "int8, groups of 32": {"weights": "int8"},
    "int4, groups of 128": {"weights": "int4", "group_size": 128},
    "int4, groups of 32": {"weights": "int4"},
    "int3, groups of 32": {"weights": "int3"},
    "int2, groups of 32": {"weights": "int2"},
    "int4, groups of 32, float activations": {"weights": "int4", "activations": "float32"},
    "int8, a scale for each output, no compiler": {"weights": "int8", "group_size": None},
    "int4, groups of 32, no compiler": {"weights": "int4"},
}
Row = dict[str, str | float]
COLUMNS = ("form", "milliseconds", "speedup_over_float32", "relative_error")


def main() -> None:
    """The two tables, and benchmarks/results/llm.json."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Llama().eval()
    results = {}
    for name, (tokens, rounds) in STEPS.items():
        results[name] = measured(model, model.step(tokens), rounds)
        print(f"{name}: {tokens} token{'s' * (tokens > 1)}")
        print(text_table(COLUMNS, [tuple(str(row[column]) for column in COLUMNS) for row in results[name]]))
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**kept, "torch": torch.__version__, **results}, indent=1) + "\n")


def measured(model: Llama, inputs: tuple[Tensor, ...], rounds: int) -> list[Row]:
    """A row for each form, all of them timed in turns."""
    graph = capture(model, inputs).graph
    modules: dict[str, nn.Module] = {"float32": model}
    modules["torch dynamic int8"] = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    modules |= {name: compressed(graph, name) for name in FORMS}
    with torch.no_grad():
        logits = {name: module(*inputs)[0] for name, module in modules.items()}
        times = {name: list[float]() for name in modules}
        for _ in range(rounds):
            for name, module in modules.items():
                start = time.process_time()
                module(*inputs)
                times[name].append(time.process_time() - start)
    expected = logits["float32"]
    return [
        {
            "form": name,
            "milliseconds": round(1e3 * statistics.median(taken), 2),
            "speedup_over_float32": round(
                statistics.median(a / b for a, b in zip(times["float32"], taken, strict=True)), 2
            ),
            "relative_error": round(float((logits[name] - expected).norm() / expected.norm()), 5),
        }
        for name, taken in times.items()
    ]


def compressed(graph: Graph, name: str) -> nn.Module:
    """The emitted module of a form."""
    artifact = emit(weight_only(graph, WeightOnlyOptions.model_validate(FORMS[name])).graph)
    if not name.endswith("no compiler"):
        return artifact.build()
    return WithoutCompiler(artifact.build())


class WithoutCompiler(nn.Module):
    """A module whose calls find no kernel."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Any:  # any: what the module returns
        """The results of the module."""
        with patch.dict(type(self.module).forward.__globals__, packed_linear_library=lambda: None):
            return self.module(*inputs)


if __name__ == "__main__":
    main()
