"""The SMS Spam Collection as tokens and labels.

    T. Almeida et al., Contributions to the study of SMS spam filtering, 2011.

Tokens are words, single digits and signs: the most frequent ones of the training messages have a number each, the
others share the numbers after these, chosen by a checksum.
"""

import itertools
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
from network import LENGTH, PAD, VOCABULARY
from numpy.typing import NDArray

FILE = Path(__file__).resolve().parents[3] / "shared" / "data" / "sms_spam.npz"
FIRST, SHARED = 1, 128  # the token for the classification; numbers that rare tokens share
VALIDATION = 400

Arrays = dict[str, NDArray[np.generic]]


def training() -> Arrays:
    """Messages for training and calibration."""
    ids, labels = _split("train")
    return {"ids": ids[VALIDATION:], "spam": labels[VALIDATION:]}


def validation() -> Arrays:
    """Messages for choosing recipes."""
    ids, labels = _split("train")
    return {"ids": ids[:VALIDATION], "spam": labels[:VALIDATION]}


def evaluation() -> Arrays:
    """Messages for the table."""
    ids, labels = _split("test")
    return {"ids": ids, "spam": labels}


def tokens(text: str) -> list[str]:
    """Words in lower case, digits and signs."""
    return re.findall(r"[a-z']+|\d|[^\sa-z\d]", text.lower())


def encoded(texts: Iterable[str], numbers: dict[str, int]) -> NDArray[np.int64]:
    """Token numbers [n, LENGTH] of texts, cut or padded."""
    rows = [[FIRST, *(_number(token, numbers) for token in tokens(text))][:LENGTH] for text in texts]
    return np.array([row + [PAD] * (LENGTH - len(row)) for row in rows], np.int64)


def vocabulary(texts: Iterable[str]) -> dict[str, int]:
    """The most frequent tokens and their numbers."""
    counts = Counter(token for text in texts for token in tokens(text))
    frequent = counts.most_common(VOCABULARY - SHARED - FIRST - 1)
    return {token: FIRST + 1 + index for index, (token, _) in enumerate(frequent)}


def _number(token: str, numbers: dict[str, int]) -> int:
    shared = VOCABULARY - SHARED + zlib.crc32(token.encode()) % SHARED
    return numbers.get(token, shared)


@cache
def _split(part: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    with np.load(FILE, allow_pickle=False) as arrays:
        texts = {name: _texts(arrays[f"text_{name}"], arrays[f"offset_{name}"]) for name in ("train", "test")}
        labels = arrays[f"y_{part}"].astype(np.int64)
    return encoded(texts[part], vocabulary(texts["train"][VALIDATION:])), labels


def _texts(content: NDArray[np.uint8], offsets: Sequence[int]) -> list[str]:
    return [bytes(content[a:b]).decode() for a, b in itertools.pairwise(offsets)]
