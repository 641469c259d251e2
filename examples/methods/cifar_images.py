"""CIFAR-10 for the ResNet-8 of MLPerf Tiny: images for calibration, 500 to choose recipes on, 487 for the table."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
CALIBRATION, VALIDATION = 256, 500

Arrays = dict[str, NDArray[np.generic]]


def calibration_0() -> Arrays:
    """Images `x` [256, 3, 32, 32] from 0 to 255, and classes `y`; other ones for each seed."""
    return _drawn(0)


def calibration_1() -> Arrays:
    """Images for seed 1."""
    return _drawn(1)


def calibration_2() -> Arrays:
    """Images for seed 2."""
    return _drawn(2)


def validation() -> Arrays:
    """Images that are not in any set for calibration."""
    return _rows("cifar10_jpeg_subset.npz", "_train", np.arange(VALIDATION))


def evaluation() -> Arrays:
    """Lossless images."""
    return _rows("cifar10_lossless_calib.npz", "", np.arange(487))


def _drawn(seed: int) -> Arrays:
    order = np.random.default_rng(seed).permutation(np.arange(VALIDATION, 7000))
    return _rows("cifar10_jpeg_subset.npz", "_train", order[:CALIBRATION])


def _rows(file: str, part: str, rows: NDArray[np.integer]) -> Arrays:
    if not (DATA / file).is_file():
        raise FileNotFoundError(f"{DATA / file} is missing; run `make mlperf-data`")
    with np.load(DATA / file) as arrays:
        images = arrays[f"x{part}"][rows].transpose(0, 3, 1, 2).astype(np.float32)
        return {"x": images, "y": arrays[f"y{part}"][rows].astype(np.int64)}
