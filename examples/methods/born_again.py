"""Born-again networks (Furlanello et al., 2018): the trained network is the teacher of a new one of the same form."""

import tempfile
from pathlib import Path

import torch
from networks import LeNet300
from safetensors.torch import save_file

from fxpress.compiler import Compiled, compile_model

HERE = Path(__file__).resolve().parent


def measure(variant: str, seed: int, on: str) -> float:
    """Correct answers, in percent, of the second generation, or of the first one, the baseline."""
    found = generation(seed, on, "distill=null")
    if variant == "method":
        with tempfile.TemporaryDirectory() as folder:
            weights = Path(folder) / "first.safetensors"
            save_file({name: found.graph.params[name].contiguous() for name in found.graph.params}, weights)
            teacher = f"{{source: '{HERE / 'networks.py'}:LeNet300', weights: '{weights}'}}"
            found = generation(
                seed + 10, on, f"distill.teacher={teacher}", "distill.temperature=1", "distill.weight=50 %"
            )
    return found.report.measurements[-1].value


def generation(seed: int, on: str, *settings: str) -> Compiled:
    """A network trained from random weights of this seed."""
    torch.manual_seed(seed)
    overrides = [f"data.evaluation.source={HERE / 'images.py'}:{on}", f"passes[1].seed={seed}"]
    overrides += [f"passes[1].{setting}" for setting in settings]
    return compile_model(HERE / "hinton.yaml", overrides=overrides, model=LeNet300())
