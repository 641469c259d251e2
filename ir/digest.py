"""Digest of a graph: equal for the same operators, types and constants."""

from __future__ import annotations

import hashlib

from .element_type import element_bytes
from .graph import Graph
from .text import dump


def digest(graph: Graph) -> str:
    """SHA-256 of a graph's text and of the bytes of its constants."""
    sha = hashlib.sha256(dump(graph).encode())
    for name in sorted(graph.params):
        sha.update(name.encode())
        sha.update(element_bytes(graph.params[name]))
    return sha.hexdigest()
