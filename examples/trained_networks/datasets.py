"""Calibration and evaluation arrays for the specs of this folder, from ../shared/data and the golden files.

Each function returns arrays by name, like an npz file, and a spec refers to it as `datasets.py:FUNCTION`. All
functions are deterministic. No sample of an evaluation set is in a calibration set.
"""

from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[3] / "shared"
DATA, MODELS = SHARED / "data", SHARED / "models"

TOKENS, LONGEST, MASK, SPECIAL = 32, 96, 14, (0, 12, 13)
"""Lengths of a window and of the longest reaction in tokens; the token that asks for another; those never asked for."""
FRAMES, NEW_FRAMES = 161, 3
"""Frames that a decision of the wake word depends on, and new frames for each decision."""
CALIBRATION_CLIPS = 4
"""Inverse of the fraction of clips for calibration."""
STEP, CONTEXT = 512, 64
"""Samples of sound in a step of voice activity detection, and those of the step before that it sees again."""

Arrays = dict[str, NDArray[np.generic]]


def images_for_calibration() -> Arrays:
    """512 training images of CIFAR-10, from JPEG: `x` [n, 32, 32, 3], bytes."""
    return {"x": _load(DATA / "cifar10_jpeg_subset.npz", "x_train")[:512]}


def test_images() -> Arrays:
    """Test images of CIFAR-10, lossless: 98 of the benchmark's accuracy set and 487 others, `x` and classes `y`."""
    files = [DATA / "ic01_eval_dev.npz", DATA / "cifar10_lossless_calib.npz"]
    return {name: np.concatenate([_load(file, name) for file in files]) for name in ("x", "y")}


def candidate_windows() -> Arrays:
    """Every other window that the proposal network finds in a photograph: `x` [77, 3, 24, 24], bytes."""
    return {"x": _load(MODELS / "mtcnn_rnet_golden.npz", "cand_x")[::2]}


def other_candidate_windows() -> Arrays:
    """The other windows, and `face` [77], the probabilities of the original refinement network."""
    file = MODELS / "mtcnn_rnet_golden.npz"
    return {"x": _load(file, "cand_x")[1::2], "face": _load(file, "cand_prob")[1::2, 1]}


def photograph_in_tiles() -> Arrays:
    """A smaller photograph in 64 tiles, `x` [64, 3, 24, 24], and `face` [64, 7, 7] of the original proposal network.

    One place of the map is two pixels, so tiles that begin at even pixels have the whole photograph's map.
    """
    file = MODELS / "mtcnn_pnet_golden.npz"
    pixels, face = _load(file, "img128_x")[0], _load(file, "img128_prob")[0, 1]
    corners = [(y, x) for y in (*range(0, 49, 7), 52) for x in (*range(0, 49, 7), 52)]
    return {
        "x": np.stack([pixels[:, 2 * y : 2 * y + 24, 2 * x : 2 * x + 24] for y, x in corners]),
        "face": np.stack([face[y : y + 7, x : x + 7] for y, x in corners]),
    }


def speech_frames() -> Arrays:
    """260 frames of recorded speech, each with mean 0 and deviation 1: `x` [260, 1, 1024]."""
    wave = _load(DATA / "speech16k_calib.npz", "wave")
    starts = range(0, len(wave) - 1024, 1536)
    return {"x": _normalized(np.stack([wave[start : start + 1024] for start in starts]))}


def tones() -> Arrays:
    """400 harmonic tones with noise, `x` [400, 1, 1024], and their frequencies `f0` in Hz."""
    file = DATA / "tones_f0_dev.npz"
    return {"x": _normalized(_load(file, "x")), "f0": _load(file, "f0")}


def speech_steps() -> Arrays:
    """Eight recordings, one after the other, in steps: `x` [782, 576] from -1 to 1."""
    return {"x": _steps(_load(DATA / "speech16k_calib.npz", "wave"))}


def other_speech_steps() -> Arrays:
    """Another recording in steps, `x` [378, 576], and `speech` [378], the original network's probabilities."""
    file = MODELS / "silero_vad_16k_golden.npz"
    return {"x": _steps(_load(file, "wave")), "speech": _load(file, "prob")}


def sound_windows() -> Arrays:
    """Windows of recorded speech and of every fourth clip, among them the wake word: `x` [n, 161, 40], int8.

    Recorded speech alone, which never has the wake word, would leave out the upper half of the output's range.
    """
    clips = [frames for number, (frames, _) in enumerate(_clips()) if number % CALIBRATION_CLIPS == 0]
    speech = _load(DATA / "ww_okay_nabu_tts.npz", "calib")
    return {"x": np.concatenate([_windows(frames, every=3 * NEW_FRAMES) for frames in (speech, *clips)])}


def clip_windows() -> Arrays:
    """All whole windows of the other clips, `x` [n, 161, 40], and `clip` [n, 2]: its number, 1 for the wake word."""
    kept = [(number, *clip) for number, clip in enumerate(_clips()) if number % CALIBRATION_CLIPS]
    windows = [_windows(frames, every=NEW_FRAMES) for _, frames, _ in kept]
    origin = [np.tile([n, said], (len(x), 1)) for (n, _, said), x in zip(kept, windows, strict=True)]
    return {"x": np.concatenate(windows), "clip": np.concatenate(origin).astype(np.int64)}


def reaction_windows(*, share: float = 0.15, seed: int = 0) -> Arrays:
    """Windows of 32 tokens of seven reactions, some tokens masked: `ids` [n, 32]."""
    with np.load(MODELS / "rxn_albert_golden.npz") as archive:
        reactions = [archive[f"ex{index}_ids"] for index in range(3)]
        reactions += [
            ids[:length] for ids, length in zip(archive["pad96_ids"], archive["pad96_length"], strict=True)
        ]
    starts = [(ids, start) for ids in reactions for start in range(0, len(ids) - TOKENS + 1, 8)]
    ids = np.stack([ids[start : start + TOKENS] for ids, start in starts]).astype(np.int64)
    asked = np.random.default_rng(seed).random(ids.shape) < share
    return {"ids": np.where(asked & ~np.isin(ids, SPECIAL), MASK, ids)}


def masked_reactions() -> Arrays:
    """The first 32 tokens of 200 other reactions, `ids` [200, 32], and the right `token` for each mask, else -1."""
    file = DATA / "rxn_mlm_dev.npz"
    ids, token = _load(file, "ids")[:, :TOKENS], _load(file, "label")[:, :TOKENS]
    return {"ids": ids.astype(np.int64), "token": token.astype(np.int64)}


def padded_reactions(*, copies: int = 8, share: float = 0.15, seed: int = 0) -> Arrays:
    """Seven whole reactions, each with other tokens masked in `copies` copies: `ids` [56, 96], padded with 0."""
    with np.load(MODELS / "rxn_albert_golden.npz") as archive:
        whole = [archive[f"ex{index}_ids"] for index in range(3)]
        padded = np.stack([np.pad(ids[:LONGEST], (0, max(LONGEST - len(ids), 0))) for ids in whole])
        ids = np.concatenate([padded, archive["pad96_ids"]]).astype(np.int64).repeat(copies, 0)
    asked = np.random.default_rng(seed).random(ids.shape) < share
    return {"ids": np.where(asked & ~np.isin(ids, SPECIAL), MASK, ids)}


def whole_masked_reactions() -> Arrays:
    """200 other reactions, `ids` [200, 96], padded with 0, and the right `token` for each mask, else -1."""
    file = DATA / "rxn_mlm_dev.npz"
    return {"ids": _load(file, "ids").astype(np.int64), "token": _load(file, "label").astype(np.int64)}


def _load(file: Path, name: str) -> NDArray[np.generic]:
    if not file.exists():
        raise FileNotFoundError(f"{file} is missing; run examples/trained_networks/obtain.py")
    with np.load(file) as archive:
        array: NDArray[np.generic] = archive[name]
    return array


def _clips() -> list[tuple[NDArray[np.generic], int]]:
    """Frames of each synthetic clip, and 1 where it says the wake word."""
    frames, offset, said = (_load(DATA / "ww_okay_nabu_tts.npz", name) for name in ("x", "offset", "y"))
    return [(frames[a:b], int(y)) for (a, b), y in zip(pairwise(offset), said, strict=True)]


def _normalized(frames: NDArray[np.generic]) -> NDArray[np.float32]:
    """Frames [n, 1024] with mean 0 and deviation 1, as [n, 1, 1024]."""
    x = frames.astype(np.float64)
    x -= x.mean(1, keepdims=True)
    x /= np.maximum(x.std(1, ddof=1, keepdims=True), 1e-10)
    return x[:, None].astype(np.float32)


def _steps(wave: NDArray[np.generic]) -> NDArray[np.float32]:
    """Sound as int16 [n] in steps of new samples, with the last ones of the step before in front, from -1 to 1."""
    padded = np.concatenate([np.zeros(CONTEXT), wave.astype(np.float64) / 32768]).astype(np.float32)
    starts = range(0, len(wave) - STEP + 1, STEP)
    return np.stack([padded[start : start + CONTEXT + STEP] for start in starts])


def _windows(frames: NDArray[np.generic], *, every: int) -> NDArray[np.generic]:
    """All windows of FRAMES frames, one for each `every` frames."""
    return np.stack([frames[end - FRAMES : end] for end in range(FRAMES, len(frames) + 1, every)])
