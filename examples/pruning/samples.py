"""Training images in random order: the file holds them class after class."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10_jpeg_subset.npz"
SEED = 0


def training() -> Mapping[str, np.ndarray]:
    """7,000 CIFAR-10 training images, from JPEG, and their classes."""
    with np.load(FILE) as arrays:
        x, y = arrays["x_train"], arrays["y_train"]
    order = np.random.default_rng(SEED).permutation(len(x))
    return {"x": x[order], "y": y[order]}
