"""Speed of a decoder with integer weights: one token, and a prompt of 128 tokens, on one thread.

    python benchmarks/llm.py        # make bench-llm

The decoder has 124.7 million random weights (`random_llama.py`). All forms run in turns within one process; a figure
is CPU time, a speedup the median of the ratios to float32 of the same turn, and the relative error that of the logits
against float32. `caches in place` is the emitted module as a spec with `model.cache` has it, `no compiler` the one
where no C compiler is found, `C step` one call of the emitted C. A token is the last one of the context.
"""

from __future__ import annotations

import ctypes
import json
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from random_llama import Llama
from torch import Tensor, nn

from fxpress.backends.c import emit as emit_c
from fxpress.backends.c.tools import link_shared, target_compiler
from fxpress.backends.torch_module import TorchOptions, emit
from fxpress.compiler import capture, for_c, text_table
from fxpress.ir import Graph
from fxpress.passes import weight_only
from fxpress.specs import COutput, load_target
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
    "int8, a scale for each output, caches in place": {"weights": "int8", "group_size": None},
    "int4, groups of 32, caches in place": {"weights": "int4"},
    "int8, a scale for each output, no compiler": {"weights": "int8", "group_size": None},
    "int4, groups of 32, no compiler": {"weights": "int4"},
}
C_FORMS: Mapping[str, Mapping[str, Any]] = {
    "C step int8": {"weights": "int8", "group_size": None},
    "C step int4 g32": {"weights": "int4"},
}
Form = Callable[..., Any]  # any: results of a module; the first result are the logits
Row = dict[str, str | float]
COLUMNS = ("form", "milliseconds", "speedup_over_float32", "relative_error")


def main() -> None:
    """Prints the two tables and writes benchmarks/results/llm.json."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = Llama().eval()
    results = {}
    for name, (tokens, rounds) in STEPS.items():
        with tempfile.TemporaryDirectory(prefix="fxpress-llm-") as folder:
            results[name] = measured(model, model.step(tokens), rounds, Path(folder))
        print(f"{name}: {tokens} token{'s' * (tokens > 1)}")
        print(text_table(COLUMNS, [tuple(str(row[column]) for column in COLUMNS) for row in results[name]]))
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    RESULTS.write_text(json.dumps({**kept, "torch": torch.__version__, **results}, indent=1) + "\n")


def measured(model: Llama, inputs: tuple[Tensor, ...], rounds: int, folder: Path) -> list[Row]:
    """A row for each form, all of them timed in turns."""
    graph = capture(model, inputs).graph
    modules: dict[str, Form] = {"float32": model}
    modules["torch dynamic int8"] = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    modules |= {name: compressed(graph, name) for name in FORMS}
    if inputs[0].numel() == 1:
        modules |= {name: CStep(graph, name, folder) for name in C_FORMS}
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


class CStep:
    """The emitted C of a form, with its caches, which are zero before the first call."""

    def __init__(self, graph: Graph, name: str, folder: Path) -> None:
        stored = weight_only(for_c(graph), WeightOnlyOptions.model_validate(C_FORMS[name])).graph
        options, target = (
            COutput(name="llama", weights_file="binary", states="in_place", self_test=0),
            load_target("host"),
        )
        place = folder / name.replace(" ", "-")
        place.mkdir()
        artifact = emit_c(stored, options, target, states=states_of(stored))
        library = link_shared(target_compiler(target), artifact.write(place), place / "llama.so", flags=())
        self.call, macros = ctypes.CDLL(str(library)).llama_step, artifact.macros
        self.state = aligned(int(macros["LLAMA_STATE_BYTES"]))
        self.arena = aligned(int(macros["LLAMA_ARENA_BYTES"]))
        self.weights = aligned(int(macros["LLAMA_WEIGHTS_BYTES"]))
        self.weights[:] = np.frombuffer(artifact.files["llama_weights.bin"], np.uint8)
        self.logits = np.zeros(graph.outputs[0].type.shape, np.float32)

    def __call__(self, token: Tensor, position: Tensor, *_: Tensor) -> tuple[Tensor]:
        """The logits of a token."""
        arrays = (token.numpy(), position.numpy(), self.state, self.logits, self.weights, self.arena)
        status = self.call(*(ctypes.c_void_p(array.ctypes.data) for array in arrays))
        assert status == 0
        return (torch.from_numpy(self.logits),)


def aligned(size: int) -> NDArray[np.uint8]:
    """Zeros at a multiple of 64 bytes."""
    room = np.zeros(size + 64, np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


def states_of(graph: Graph) -> dict[str, str]:
    """The caches: inputs after token and position, and the outputs after the logits that continue them."""
    return dict(zip((value.name for value in graph.inputs[2:]), graph.output_names[1:], strict=True))


def compressed(graph: Graph, name: str) -> nn.Module:
    """The emitted module of a form."""
    stored = weight_only(graph, WeightOnlyOptions.model_validate(FORMS[name])).graph
    artifact = emit(stored, TorchOptions(in_place=states_of(stored) if name.endswith("in place") else {}))
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
