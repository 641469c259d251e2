"""Weights as Huffman codes in flash: an implementation that decodes them into working memory before it computes."""

from __future__ import annotations

from dataclasses import replace

from ..kernels.base import WEIGHT_ROLES, Constant, Implementation
from .image import image_of


def with_coded_weights(implementation: Implementation) -> Implementation:
    """The implementation with its integer weights as Huffman images, where that makes them smaller."""
    calls = tuple(
        replace(call, constants=tuple(map(_coded, call.constants))) for call in implementation.calls
    )
    coded = replace(implementation, calls=calls)
    return coded if coded.coded else implementation


def _coded(constant: Constant) -> Constant:
    if constant.role not in WEIGHT_ROLES or constant.data.dtype.kind != "i":
        return constant
    image = image_of(constant.data)
    return replace(constant, image=image) if image.bytes < constant.bytes else constant
