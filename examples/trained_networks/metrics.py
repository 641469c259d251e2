"""Metrics of the specs of this folder: functions of an output and labels, tensors with samples first, to a number.

Results are percentages.
"""

import torch
from torch import Tensor

PROPOSED, DECIDED = 0.6, 0.5
"""Probabilities from which a place is proposed as a face, and from which other decisions are yes."""
DETECTED, AVERAGED = 0.5, 5
"""Mean of so many successive probabilities from which a wake word is detected."""


def same_faces(probability: Tensor, face: Tensor) -> float:
    """Positions that both networks propose, among those that at least one proposes: probabilities [n, 2, h, w]."""
    ours, theirs = probability[:, 1] > PROPOSED, face > PROPOSED
    return _percent((ours & theirs).sum() / (ours | theirs).sum())


def same_decisions(probability: Tensor, original: Tensor) -> float:
    """Samples with the decision of the original network: probabilities [n, 1] of yes, or [n, 2] of no and yes."""
    ours = probability.flatten(1)[:, -1] > DECIDED
    return _percent((ours == (original > DECIDED)).double().mean())


def within_50_cents(logits: Tensor, f0: Tensor) -> float:
    """Frames whose pitch is less than half a semitone from `f0` [n] in Hz: logits [n, 360]."""
    cents = 1200 * torch.log2(pitch(logits) / f0.double())
    return _percent((cents.abs() <= 50).double().mean())


def pitch(logits: Tensor) -> Tensor:
    """Frequencies [n] in Hz: the mean of nine bins of 20 cents around the largest, weighted by probability."""
    near = torch.arange(-4, 5) + logits.argmax(1, keepdim=True)
    weight = torch.sigmoid(logits.double()).gather(1, near.clamp(0, 359)) * ((near >= 0) & (near <= 359))
    bins = (weight * near).sum(1) / weight.sum(1)
    return 10 * 2 ** ((20 * bins + 1997.3794084376191) / 1200)


def clips_right(logits: Tensor, clip: Tensor) -> float:
    """Clips with a correct decision on the wake word, detected or not: logits [n, 1] of all windows."""
    probability = torch.sigmoid(logits.flatten().double())
    right = []
    for index in clip[:, 0].unique():
        own = clip[:, 0] == index
        detected = probability[own].unfold(0, AVERAGED, 1).mean(1).max() > DETECTED
        right.append(bool(detected) == bool(clip[own][0, 1]))
    return 100 * sum(right) / len(right)


def masked_tokens(logits: Tensor, token: Tensor) -> float:
    """Correctly predicted tokens among the masked ones (token not -1): logits [n, t, 591]."""
    asked = token >= 0
    return _percent((logits.argmax(-1) == token)[asked].double().mean())


def _percent(share: Tensor) -> float:
    return 100 * float(share)
