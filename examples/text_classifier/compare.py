"""Accuracy, size and CPU time of the classifier: as trained, in int8, with half of its work, and both.

    python examples/text_classifier/compare.py          # some minutes; --on validation chooses the other messages

Sizes are those of the tensors in the emitted torch modules. CPU times are of one message on one thread, the least of
many calls taken in turns.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import messages
import torch
from network import TextClassifier
from safetensors.torch import load_file
from torch import Tensor, nn
from train import OUTPUT

from fxpress.compiler import compile_model, text_table

HERE = Path(__file__).resolve().parent
SPECS = ("int8", "pruned", "small")
COLUMNS = ("form", "right", "share", "MACs", "bytes", "CPU ms", "times float")
ROUNDS = 200


def main(arguments: list[str] | None = None) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--on", choices=("validation", "evaluation"), default="evaluation")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    ids, labels = (torch.from_numpy(x) for x in getattr(messages, options.on)().values())
    model = TextClassifier().eval()
    model.load_state_dict(load_file(OUTPUT))
    modules: dict[str, nn.Module] = {"float": model}
    macs: dict[str, int] = {}
    for name in SPECS:
        print(f"compiling {name}.yaml", flush=True)
        compiled = compile_model(HERE / f"{name}.yaml", overrides=["data.evaluation=null"])
        assert compiled.torch is not None
        modules[name] = compiled.torch.build()
        macs |= {"float": compiled.report.macs_before, name: compiled.report.macs_after}
    milliseconds = in_turns(modules, ids[:1])
    rows = []
    for name, module in modules.items():
        correct = right(module, ids, labels)
        size = sum(x.numel() * x.element_size() for x in module.state_dict().values())
        speedup = milliseconds["float"] / milliseconds[name]
        rows.append(
            (
                name,
                f"{correct} of {len(labels)}",
                f"{correct / len(labels):.2%}",
                f"{macs[name]:,}",
                f"{size:,}",
                f"{milliseconds[name]:.2f}",
                f"{speedup:.2f}",
            )
        )
    print(text_table(COLUMNS, rows))


def right(module: nn.Module, ids: Tensor, labels: Tensor) -> int:
    """Number of messages that are classified correctly, one at a time."""
    with torch.no_grad():
        scores = torch.cat([module(row[None]) for row in ids])
    return int((scores.argmax(1) == labels).sum())


def in_turns(modules: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Least CPU milliseconds of a call of each module."""
    least = dict.fromkeys(modules, float("inf"))
    with torch.no_grad():
        for _ in range(ROUNDS):
            for name, module in modules.items():
                began = time.process_time()
                module(x)
                least[name] = min(least[name], (time.process_time() - began) * 1e3)
    return least


if __name__ == "__main__":
    main()
