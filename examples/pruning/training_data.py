"""Training data in random order: the files are ordered by class."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
SEED = 0


def training() -> Mapping[str, np.ndarray]:
    """7,000 CIFAR-10 training images, from JPEG, and their classes."""
    return _shuffled("cifar10_jpeg_subset.npz")


def spoken_digits() -> Mapping[str, np.ndarray]:
    """2,400 spoken digits of six speakers, [n, 49, 10], and their labels.

    The test set of the file has the same speakers, and other recordings of each.
    """
    return _shuffled("fsdd_mfcc.npz")


def _shuffled(file: str) -> Mapping[str, np.ndarray]:
    if not (DATA / file).exists():
        raise FileNotFoundError(f"{DATA / file} is missing; run `make mlperf-data`")
    with np.load(DATA / file) as arrays:
        x, y = arrays["x_train"], arrays["y_train"]
    order = np.random.default_rng(SEED).permutation(len(x))
    return {"x": x[order], "y": y[order]}
