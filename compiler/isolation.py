"""Protection around the user's code: the errors that it may raise, and restoration of state."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

USER_CODE_RAISES = (Exception, SystemExit)
"""Exceptions that the user's code may raise; `sys.exit` in it must not end the compiler without a message."""

_CONTAINERS = (dict, list, set)


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Restores attributes of `model` and the random generators afterwards."""
    kept = [
        (holder, holder.copy())
        for module in model.modules()
        for holder in (vars(module), *vars(module).values())
        if isinstance(holder, _CONTAINERS)
    ]
    states = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for holder, before in kept:
            holder.clear()
            holder.extend(before) if isinstance(holder, list) else holder.update(before)
        random.setstate(states[0])
        np.random.set_state(states[1])
