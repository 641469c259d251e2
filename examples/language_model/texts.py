"""Texts that the model generates itself, for calibration and for measurements: no external text is needed."""

from pathlib import Path

import numpy as np
import torch
from llama import Stories260K
from numpy.typing import NDArray
from safetensors.torch import load_file
from tokenizer import BEGIN

LENGTH = 256
WEIGHTS = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories260k_llama.safetensors"


def float_model() -> Stories260K:
    """The trained model."""
    model = Stories260K().eval()
    model.load_state_dict(load_file(WEIGHTS), strict=False)
    return model


def sampled(count: int, *, seed: int) -> NDArray[np.int64]:
    """Texts [count, LENGTH], each token drawn from the model's distribution given the previous tokens."""
    model, generator = float_model(), torch.Generator().manual_seed(seed)
    tokens = torch.full((count, 1), BEGIN)
    with torch.no_grad():
        while tokens.shape[1] < LENGTH:
            chances = model(tokens)[:, -1].softmax(-1)
            tokens = torch.cat([tokens, torch.multinomial(chances, 1, generator=generator)], 1)
    texts: NDArray[np.int64] = tokens.numpy()
    return texts


def calibration() -> dict[str, NDArray[np.int64]]:
    """40 texts for calibration and training."""
    return {"tokens": sampled(40, seed=0)}
