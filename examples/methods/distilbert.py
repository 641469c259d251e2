"""DistilBERT (Sanh et al., 2019): every second layer of an encoder, started from its weights."""

from pathlib import Path

import torch
from encoder import Encoder
from safetensors.torch import load_file

from fxpress.compiler import compile_model

HERE = Path(__file__).resolve().parent
LAYERS = range(0, 12, 2)
TEACHER = HERE.parents[1] / "build" / "methods" / "encoder12.safetensors"


def measure(variant: str, seed: int, on: str) -> float:
    """Correct answers, in percent; the baseline starts from random weights and learns from labels alone."""
    torch.manual_seed(seed)
    student, settings = Encoder(LAYERS), ["passes[1].distill=null"]
    if variant == "method":
        weights = load_file(TEACHER)
        student.load_state_dict({name: weights[name] for name in student.state_dict()})
        settings = []
    messages = HERE.parent / "text_classifier" / "messages.py"
    settings += [f"data.evaluation.source={messages}:{on}", f"passes[1].seed={seed}"]
    return (
        compile_model(HERE / "distilbert.yaml", overrides=settings, model=student)
        .report.measurements[-1]
        .value
    )
