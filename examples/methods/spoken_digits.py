"""Spoken digits (Free Spoken Digit Dataset) as cepstra: 2,100 for training, 300 for recipes, 300 for the table."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "fsdd_mfcc.npz"
TRAINED_ON = 2_100
SEED = 0
LABELLED, UNLABELLED = 200, -100

Arrays = dict[str, NDArray[np.generic]]


def training() -> Arrays:
    """Cepstra `x` [n, 49, 10] with the mean and deviation of each coefficient removed, and digits `y`."""
    return _part("train", slice(TRAINED_ON))


def partly_labelled() -> Arrays:
    """The samples for training, of which only the first 200 have labels that losses read."""
    arrays = training()
    arrays["y"][LABELLED:] = UNLABELLED
    return arrays


def validation() -> Arrays:
    """Samples that no training sees, for choosing recipes."""
    return _part("train", slice(TRAINED_ON, None))


def evaluation() -> Arrays:
    """Samples of the test set."""
    return _part("test", slice(None))


def _part(name: str, rows: slice) -> Arrays:
    if not FILE.is_file():
        raise FileNotFoundError(f"{FILE}: an npz file with x_train, y_train, x_test, y_test of spoken digits")
    with np.load(FILE) as arrays:
        known = arrays["x_train"]
        mean, deviation = known.mean((0, 1)), known.std((0, 1))
        order = np.random.default_rng(SEED).permutation(len(arrays[f"x_{name}"]))[rows]
        x = (arrays[f"x_{name}"][order] - mean) / deviation
        return {"x": x.astype(np.float32), "y": arrays[f"y_{name}"][order].astype(np.int64)}
