"""Fashion-MNIST as samples: 18,000 images for training, 2,000 to choose recipes on, 4,000 for the table."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "fashion_mnist.npz"
TRAINED_ON = 18_000
FEW, CLASSES = 5, 10

Arrays = dict[str, NDArray[np.generic]]


def training() -> Arrays:
    """Images `x` [n, 1, 28, 28] between 0 and 1, and classes `y`."""
    return _part("train", slice(TRAINED_ON))


def few() -> Arrays:
    """The first five images for training of each class."""
    arrays = training()
    rows = np.concatenate([np.flatnonzero(arrays["y"] == label)[:FEW] for label in range(CLASSES)])
    return {name: array[rows] for name, array in arrays.items()}


def validation() -> Arrays:
    """Images that no training sees, for choosing recipes."""
    return _part("train", slice(TRAINED_ON, None))


def evaluation() -> Arrays:
    """Images of the test set."""
    return _part("test", slice(None))


def _part(name: str, rows: slice) -> Arrays:
    if not FILE.is_file():
        raise FileNotFoundError(f"{FILE}: an npz file with x_train, y_train, x_test, y_test of Fashion-MNIST")
    with np.load(FILE) as arrays:
        images = arrays[f"x_{name}"][rows, None].astype(np.float32) / 255
        return {"x": images, "y": arrays[f"y_{name}"][rows].astype(np.int64)}
