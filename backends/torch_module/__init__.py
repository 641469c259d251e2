"""Torch backend: a graph as a rewritten `torch.nn.Module` with readable source."""

from .artifact import TorchArtifact
from .emit import Form, TorchOptions, emit, read_back, to_module

__all__ = ["Form", "TorchArtifact", "TorchOptions", "emit", "read_back", "to_module"]
