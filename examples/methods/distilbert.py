"""DistilBERT (Sanh et al., 2019): every second layer of an encoder, started from its weights."""

from pathlib import Path

from encoder import Encoder
from safetensors.torch import load_file

from fxpress.compiler import compile_model

HERE = Path(__file__).resolve().parent
LAYERS = range(0, 12, 2)
TEACHER = HERE.parents[1] / "build" / "methods" / "encoder12.safetensors"


def measure(variant: str, seed: int, on: str) -> float:
    """Correct answers, in percent; the baseline is the teacher."""
    weights = load_file(TEACHER)
    student = Encoder(LAYERS if variant == "method" else range(12))
    student.load_state_dict({name: weights[name] for name in student.state_dict()})
    messages = HERE.parent / "text_classifier" / "messages.py"
    settings = [f"data.evaluation.source={messages}:{on}", f"passes[1].seed={seed}"]
    if variant == "baseline":
        settings += ["passes[1].distill=null", "passes[1].epochs=0"]
    return (
        compile_model(HERE / "distilbert.yaml", overrides=settings, model=student)
        .report.measurements[-1]
        .value
    )
