"""Inputs for the networks without a labelled set in ../shared/data, computed from other files there.

Each function returns arrays by name, like an npz file, and a spec refers to it as `samples.py:FUNCTION`. All
functions are deterministic. None reads an evaluation set.
"""

from math import log, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

SHARED_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"

KWS_STEP, KWS_ZERO_POINT = 0.5847029089927673, 83
"""The benchmark stores MFCCs as int8: value = (stored - zero point) * step."""


def spoken_digits() -> dict[str, NDArray[np.float32]]:
    """Spoken digits as the keyword network hears words: `x` [n, 49, 10], MFCCs in the steps of the benchmark's files,
    and `y`, the digits.

    Two recipes of features differ in their first coefficient, sqrt(1/m) or sqrt(2/m) times the sum over m = 40 bands,
    and in the window, whose sum (of 480 Hann weights, not 256) adds its logarithm to every band that is not silent.
    """
    mfcc = _load("fsdd_mfcc.npz", "x_train").astype(np.float64)
    silence = sqrt(40) * log(1e-6)
    energy = mfcc[..., 0] * sqrt(2)
    louder = sqrt(80) * log(480 / 256)
    mfcc[..., 0] = np.where(mfcc[..., 0] > silence + 1, energy + louder, energy)
    spoken = (mfcc[..., 0] > energy.min() + 1).mean(1) > 0.5  # a short word leaves mostly padding
    order = np.random.default_rng(0).permutation(
        np.flatnonzero(spoken)
    )  # the file is ordered by speaker, then word
    x, y = mfcc[order], _load("fsdd_mfcc.npz", "y_train")[order]
    return {"x": (x / KWS_STEP + KWS_ZERO_POINT).astype(np.float32), "y": y}


def enlarged_images() -> dict[str, NDArray[np.float32]]:
    """CIFAR-10 images at the size of the person detector: `x` [487, 3, 96, 96] from 0 to 1."""
    return {"x": _enlarge(_load("cifar10_lossless_calib.npz", "x"))}


def enlarged_test_images() -> dict[str, NDArray[np.float32]]:
    """Other CIFAR-10 images than `enlarged_images`, alike: `x` [256, 3, 96, 96]."""
    return {"x": _enlarge(_load("cifar10_jpeg_subset.npz", "x_test")[:256])}


def machine_spectra(*, recordings: int = 64, seed: int = 1) -> dict[str, NDArray[np.float32]]:
    """Noise shaped like the log-mel spectra of a machine: `x` [8 * recordings, 640], dB, five frames of 128 bands.

    A level that falls from -17 dB in the second band to -38 dB in the last, as the autoencoder's own fixed points
    do; around it a recording varies by 3 dB as a whole and by 3 dB per band, and each frame by 4 dB per band.
    """
    generator = np.random.default_rng(seed)
    level = np.linspace(-17.0, -38.0, 128)
    level[0] = -49.0
    whole = generator.normal(0.0, 3.0, (recordings, 1, 1, 1))
    band = generator.normal(0.0, 3.0, (recordings, 1, 1, 128))
    frame = generator.normal(0.0, 4.0, (recordings, 8, 5, 128))
    spectra = np.clip(level + whole + band + frame, -80.0, 12.0)
    return {"x": spectra.reshape(-1, 640).astype(np.float32)}


def other_machine_spectra() -> dict[str, NDArray[np.float32]]:
    """Spectra as `machine_spectra` makes them, of other recordings: `x` [256, 640]."""
    return machine_spectra(recordings=32, seed=2)


def _load(file: str, name: str) -> NDArray[Any]:  # Any: of whatever element type
    if not (SHARED_DATA / file).exists():
        raise FileNotFoundError(f"{SHARED_DATA / file} is missing; run `make mlperf-data`")
    with np.load(SHARED_DATA / file) as archive:
        array: NDArray[Any] = archive[name]
    return array


def _enlarge(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes [n, 32, 32, 3] to [n, 3, 96, 96] from 0 to 1, bilinear."""
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return F.interpolate(images, (96, 96), mode="bilinear", align_corners=False).numpy()
