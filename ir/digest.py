"""Digest of a graph: equal for the same operators, types and constants."""

from __future__ import annotations

import hashlib

from .graph import Graph
from .text import dump


def digest(graph: Graph) -> str:
    """SHA-256 of a graph's text and of the digests of its constants, each read once."""
    sha = hashlib.sha256(dump(graph).encode())
    for name in sorted(graph.params):
        sha.update(name.encode())
        sha.update(graph.params.digest(name).encode())
    return sha.hexdigest()
