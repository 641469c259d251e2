"""Weights as Huffman codes in flash: an offer whose calls decode them into working memory before the computation."""

from __future__ import annotations

from dataclasses import replace

from ..kernels.base import WEIGHT_ROLES, Constant, Offer
from .image import image_of


def with_coded_weights(offer: Offer) -> Offer:
    """The offer with its integer weights as Huffman images, if these are smaller.

    The size of an image depends on the packed weights, so that the offer is built to know its cost.
    """
    if not WEIGHT_ROLES & set(offer.constants):
        return offer
    calls = tuple(replace(call, constants=tuple(map(_coded, call.constants))) for call in offer.build())
    constants = [c for call in calls for c in call.constants]
    coded = tuple({id(c.data): c for c in constants if c.image is not None}.values())
    sizes = {c.role: c.flash_bytes for c in constants}
    return replace(offer, build=lambda: calls, constants=sizes, coded=coded)


def _coded(constant: Constant) -> Constant:
    if constant.role not in WEIGHT_ROLES or constant.data.dtype.kind != "i":
        return constant
    image = image_of(constant.data)
    return replace(constant, image=image) if image.bytes < constant.bytes else constant
