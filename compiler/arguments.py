"""Binding of inputs to arguments of `forward`, by name, independent of their order."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..specs.errors import nearest
from .errors import Problem, UserError, shorten


@dataclass(frozen=True)
class Binding:
    """Inputs in the order of the call; the last ones are passed as keywords, the others by position."""

    names: tuple[str, ...]
    keywords: tuple[str, ...] = ()

    def arguments(
        self, tensors: Sequence[Tensor]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:  # Any: the keywords of `capture`
        """Tensors in the order of `names` as positional and keyword arguments."""
        positional = len(self.names) - len(self.keywords)
        return tuple(tensors[:positional]), dict(zip(self.keywords, tensors[positional:], strict=True))


def bind_inputs(model: nn.Module, names: Sequence[str], place: str) -> Binding:
    """The call of `forward` with inputs of these names.

    Names that are not arguments are passed in their order to `*args` if `forward` has it; the only input of a
    `forward` with one argument may have any name. UserError for other names, and for arguments without an input.
    """
    signature = inspect.signature(model.forward)
    parameters = list(signature.parameters.values())
    own = [p for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    rest = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
    if len(own) == len(parameters) == len(names) == 1:
        given = OrderedDict[str, Any]({own[0].name: names[0]})  # Any: several names for `*args`
    else:
        given = OrderedDict((p.name, p.name) for p in own if p.name in names)
    others = tuple(name for name in names if name not in given.values())
    meant = {} if rest else {name: nearest(name, [p.name for p in own]) for name in others}
    problems = [_unknown(name, near, signature, place) for name, near in meant.items()]
    missing = [
        p.name
        for p in own
        if p.name not in (*given, *meant.values())
        # names for `*args` would be passed to an earlier argument without an input
        and (p.default is p.empty or (rest and others and p.kind is not p.KEYWORD_ONLY))
    ]
    if missing:
        fact = f"forward{plain(signature)} needs {', '.join(missing)}"
        problems.append(Problem("M104", place, fact, f"the inputs are {', '.join(names)}"))
    if problems:
        raise UserError(problems)
    if rest and others:
        given[rest] = others
    bound = inspect.BoundArguments(signature, given)
    return Binding((*bound.args, *bound.kwargs.values()), tuple(bound.kwargs))


def _unknown(name: str, near: str | None, signature: inspect.Signature, place: str) -> Problem:
    keywords = next((p.name for p in signature.parameters.values() if p.kind is p.VAR_KEYWORD), None)
    hints = [f'did you mean "{near}"?' if near else ""]
    if keywords:
        hints.append(f"**{keywords} takes no inputs: wrap the model in one whose forward names them")
    fact = f"forward{plain(signature)} has no argument {name!r}"
    return Problem("M104", place, fact, "; ".join(filter(None, hints)))


def plain(signature: inspect.Signature) -> str:
    """Parameters and defaults without annotations, in brackets."""
    bare = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return shorten(str(signature.replace(parameters=bare, return_annotation=signature.empty)))
