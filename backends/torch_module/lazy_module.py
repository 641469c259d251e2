"""An emitted module whose tensors are read at each use, so that one larger than memory can be run.

Only the tensors of one submodule are in memory at a time. Modules are called one after the other, and no result
refers to a tensor afterwards.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ...ir import Params
from .artifact import NoInitialisation, TorchArtifact, module_class


def lazy_module(artifact: TorchArtifact) -> nn.Module:
    """The module in evaluation mode; each of its tensors is read from the artifact again after another submodule was
    used.

    Recurrent layers, which keep lists of their weights, have them in memory, as does a module that computes buffers
    which are not part of its state.
    """
    with NoInitialisation(), torch.device("meta"):
        module = module_class(artifact.source, artifact.class_name)()
    if any(name not in module.state_dict() for name, _ in module.named_buffers()):
        return artifact.build()
    reader = _Reader(artifact.tensors, artifact.aliases)
    for path, part in module.named_modules():
        prefix = f"{path}." if path else ""
        tensors = {**part._parameters, **part._buffers}
        names = [name for name, tensor in tensors.items() if tensor is not None]
        if isinstance(part, nn.RNNBase):
            for name in names:
                setattr(part, name, nn.Parameter(reader.read(path, prefix + name)))
        elif names:
            base = type(part)
            for name in names:
                (part._parameters if name in part._parameters else part._buffers).pop(name)
            read = {name: _property(reader, path, prefix + name) for name in names}
            part.__class__ = type(base.__name__, (base,), read)
    return module.eval()


def _property(reader: _Reader, owner: str, key: str) -> property:
    return property(lambda part: reader.read(owner, key))


class _Reader:
    """The tensors of the most recently used submodule."""

    def __init__(self, tensors: Params, aliases: Mapping[str, str]) -> None:
        self._tensors, self._aliases = tensors, aliases
        self._owner: str | None = None
        self._held = dict[str, Tensor]()

    def read(self, owner: str, key: str) -> Tensor:
        """A tensor of the submodule at the path `owner`, by its key in the state dict."""
        if owner != self._owner:
            self._owner, self._held = owner, {}
        if key not in self._held:
            self._held[key] = self._tensors[self._aliases.get(key, key)]
        return self._held[key]
