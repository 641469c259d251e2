"""Self-supervision and self-distillation (after Lee et al., ICML 2020).

A network that tells class and rotation of an image teaches one of the same form, by the mean of its scores for four
rotations.
"""

import tempfile
from pathlib import Path

import torch
from distilled_networks import CLASSES, TURNS, Rotations, SmallNet
from safetensors.torch import save_file

from fxpress.compiler import Compiled, compile_model

HERE = Path(__file__).resolve().parent


def measure(variant: str, seed: int, on: str) -> float:
    """Correct answers, in percent; the baseline learns from labels alone."""
    evaluation = f"data.evaluation.source={HERE / 'images.py'}:{on}"
    if variant == "baseline":
        return _right(_trained(seed, evaluation, "passes[1].distill=null"))
    turned = [f"data.calibration.source={HERE / 'distilled_networks.py'}:turned", "data.evaluation=null"]
    turned += ["data.calibration.samples=null", "passes[1].distill=null", "passes[1].epochs=8"]
    found = _trained(seed, *turned, classes=TURNS * CLASSES).graph.params
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "rotations.safetensors"
        save_file({f"network.{name}": found[name].contiguous() for name in found}, weights)
        teacher = f"{{source: '{HERE / 'distilled_networks.py'}:{Rotations.__name__}', weights: '{weights}'}}"
        settings = [f"passes[1].distill.teacher={teacher}", "passes[1].distill.weight=50 %"]
        return _right(_trained(seed, evaluation, *settings, "passes[1].distill.temperature=1"))


def _trained(seed: int, *settings: str, classes: int = CLASSES) -> Compiled:
    """A network trained from random weights of this seed."""
    torch.manual_seed(seed)
    overrides = [f"passes[1].seed={seed}", "passes[1].augment={shift: 1}", *settings]
    return compile_model(HERE / "hinton.yaml", overrides=overrides, model=SmallNet(classes=classes))


def _right(compiled: Compiled) -> float:
    return compiled.report.measurements[-1].value
