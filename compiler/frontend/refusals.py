"""Unsupported contents of a traced program: training, randomness, data-dependent sizes or numbers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

from ...ir import DType, ShapeError
from ..errors import Problem, shortened
from .sources import source_of
from .traced_call import tensors_of

_aten = torch.ops.aten
INLINED = {"wrap_with_set_grad_enabled", "wrap_with_autocast", "tag_activation_checkpoint"}
"""Higher-order operators whose body is part of the program."""

_TRAINED_NORMS = {_aten.batch_norm.default: "training", _aten.instance_norm.default: "use_input_stats"}
_TRAINING_FLAGS = ("train", "training")


def refusals(program: fx.GraphModule) -> list[Problem]:
    """Everything in a program that cannot be captured, each with the user's line; nested programs included."""
    found = [problem for node in _nodes(program) for problem in _problems(node)]
    return shortened(found)


def problem_at(node: fx.Node, code: str, fact: str, advice: str) -> Problem:
    """A problem at a traced node: its line, and the layer in the message."""
    source = source_of(node)
    layer = f"{source.module}: " if source.module else ""
    return Problem(code, source.location, f"{layer}{fact}", advice)


def _nodes(program: fx.GraphModule) -> Iterator[fx.Node]:
    for module in program.modules():
        if isinstance(module, fx.GraphModule):
            yield from module.graph.nodes


def _problems(node: fx.Node) -> Iterator[Problem]:
    if node.op != "call_function":
        return
    if isinstance(node.target, HigherOrderOperator):
        yield from _bodies(node, str(node.target))
        return
    yield from _data_dependence(node)
    yield from _element_types(node)
    if isinstance(node.target, OpOverload):
        yield from _training(node, node.target)
        yield from _randomness(node, node.target)


def _bodies(node: fx.Node, name: str) -> Iterator[Problem]:
    place = _first_inside(node)
    if name == "wrap_with_autocast" and node.args[2]:
        yield problem_at(
            place, "M211", "autocast chooses element types", "convert tensors with .to() instead"
        )
    if name not in INLINED:
        yield problem_at(place, "M211", f"torch.{name} is not supported", "write the branch without it")


def _first_inside(node: fx.Node) -> fx.Node:
    """The first traced node of the program that a higher-order operator runs, or the operator's own node."""
    holder = node.graph.owning_module
    for argument in node.all_input_nodes:
        body = getattr(holder, str(argument.target), None) if argument.op == "get_attr" else None
        if isinstance(body, fx.GraphModule):
            return next((n for n in body.graph.nodes if n.meta.get("stack_trace")), node)
    return node


def _data_dependence(node: fx.Node) -> Iterator[Problem]:
    if not node.meta.get("unbacked_bindings"):
        return
    if isinstance(node.meta.get("val"), Tensor):
        fact = f"{_name(node)} returns a tensor whose size depends on the data"
        yield problem_at(
            node, "M202", fact, "use a form of fixed size, such as torch.where or a multiplied mask"
        )
    else:
        fact = f"{_name(node)} converts data to a Python number"
        yield problem_at(node, "M202", fact, "keep it a tensor")


def _element_types(node: fx.Node) -> Iterator[Problem]:
    for tensor in tensors_of(node.meta.get("val")):
        try:
            DType.of(tensor.dtype)
        except ShapeError as err:
            yield problem_at(node, "M208", f"{_name(node)}: {err.message}", "convert it to a supported type")
            return
        if tensor.layout != torch.strided:
            yield problem_at(
                node, "M208", f"{_name(node)} gives a {tensor.layout} tensor", "convert it to a dense tensor"
            )
            return


def _training(node: fx.Node, overload: OpOverload) -> Iterator[Problem]:
    flag = _TRAINED_NORMS.get(overload)
    if flag is None or not _argument(node, flag) or _argument(node, "running_mean") is None:
        return
    yield problem_at(node, "M203", "a normalization layer is in training mode", "call model.eval() first")


def _randomness(node: fx.Node, overload: OpOverload) -> Iterator[Problem]:
    if torch.Tag.nondeterministic_seeded not in overload.tags or not _draws(node, overload):
        return
    names = {a.name for a in overload._schema.arguments}
    if names & set(_TRAINING_FLAGS):
        yield problem_at(node, "M203", f"{_name(node)} is in training mode", "call model.eval() first")
        return
    yield problem_at(
        node,
        "M204",
        f"{_name(node)} draws random numbers",
        "pass them as an input, or draw them once into a buffer",
    )


def _draws(node: fx.Node, overload: OpOverload) -> bool:
    """True if an overload that may draw random numbers does so with these arguments."""
    names = {a.name for a in overload._schema.arguments}
    if any(name in names and _argument(node, name) is False for name in _TRAINING_FLAGS):
        return False
    probabilities = names & {"dropout_p", "dropout"}
    if probabilities:
        return any(_argument(node, name) for name in probabilities)
    return not ("train" in names and _argument(node, "p") == 0)


def _argument(node: fx.Node, name: str) -> Any:  # Any: the schema's own type, with traced nodes for tensors
    """An argument of a traced call by its name in the schema, or its default."""
    assert isinstance(node.target, OpOverload)
    for index, declared in enumerate(node.target._schema.arguments):
        if declared.name == name:
            return (
                node.args[index] if index < len(node.args) else node.kwargs.get(name, declared.default_value)
            )
    return None


def _name(node: fx.Node) -> str:
    return str(node.target).removesuffix(".default")
