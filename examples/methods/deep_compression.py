"""Deep Compression of LeNet-5, deep_compression/lenet5.yaml; the baseline is the float network."""

from functools import cache
from pathlib import Path

from fxpress.compiler import compile_model

HERE = Path(__file__).resolve().parent


def measure(variant: str, seed: int, on: str) -> float:
    """Right answers in percent, of the compressed network or of the float network."""
    float_network, compressed = _measured(seed, on)
    return float_network if variant == "baseline" else compressed


@cache
def _measured(seed: int, on: str) -> tuple[float, float]:
    overrides = [f"data.evaluation.source={HERE / 'images.py'}:{on}", f"passes[1].finetune.seed={seed}"]
    found = compile_model(HERE / "deep_compression" / "lenet5.yaml", overrides=overrides).report.measurements
    return found[0].value, found[-1].value
