"""Conversion of a traced program (a torch.fx graph over aten) to nodes of the IR, with in-place writes made
functional.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

from ...ir import NOWHERE, Builder, ShapeError, Source, Value
from ...ir.ops.call import Argument
from ...ir.symbolic import NO_SYMBOLS, Symbols, size_of
from ..errors import Problem
from .functionalize import Storage, Tracked, UnsupportedWriteError, View, aten
from .lowering import lower, opaque
from .refusals import INLINED, problem_at
from .sources import source_of
from .traced_call import Result, TracedCall, functional_form

_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
_COPIES = {
    aten.clone.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
}
_OVERWRITES = {aten.copy_.default, aten.fill_.Scalar, aten.fill_.Tensor, aten.zero_.default}
_RESIZING = {"resize_", "resize_as_", "set_", "_resize_output_"}


class Importer:
    """Runs a traced program once, on values of the graph under construction; collects all refusals."""

    def __init__(
        self, builder: Builder, *, source: Source | None = None, symbols: Symbols = NO_SYMBOLS
    ) -> None:
        """`source` is the source of every node; without it each node has its line in the trace.

        `symbols` has the sizes of the tracer's symbols.
        """
        self.problems: list[Problem] = []
        self._builder, self._source, self._symbols = builder, source, symbols

    def run(self, program: fx.GraphModule, arguments: Sequence[Result]) -> list[Result]:
        """Results of the program for values of its placeholders."""
        results: dict[fx.Node, Result] = {}
        remaining = iter(arguments)
        for node in program.graph.nodes:
            if node.op == "placeholder":
                results[node] = next(remaining)
            elif node.op == "get_attr":
                results[node] = self._attribute(program, str(node.target))
            elif node.op == "output":
                return list(_resolved(node.args[0], results))
            else:
                results[node] = self._call(node, results)
        raise AssertionError("a traced program ends with its output")

    def emit(self, overload: OpOverload, *args: Argument, source: Source | None = None) -> Value:
        """Appends a call with one result."""
        (value,) = lower(self._builder, overload, args, {}, source=source or NOWHERE)
        return value

    def _attribute(self, program: fx.GraphModule, name: str) -> Result:
        found = operator.attrgetter(name)(program)
        if isinstance(found, Tensor):
            return Tracked(self._builder.constant(name, found), Storage(owner=name))
        return found

    def _call(self, node: fx.Node, results: Mapping[fx.Node, Result]) -> Result:
        args = _resolved(node.args, results)
        kwargs = {name: _resolved(item, results) for name, item in node.kwargs.items()}
        if isinstance(node.target, HigherOrderOperator):
            return self._inline(node.target, args)
        if isinstance(node.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool):
            return self._number(node)
        if not isinstance(node.target, OpOverload):
            assert callable(node.target)
            return node.target(*args, **kwargs)  # getitem, or arithmetic on sizes
        if node.target in _CHECKS:
            return None
        call = TracedCall(node, node.target, args, kwargs, self._symbols)
        if torch.Tag.inplace_view in call.overload.tags:
            return self._change_view(call)
        if call.written:
            return self._write(call)
        return self._compute(call)

    def _number(self, node: fx.Node) -> Result:
        """The size that a node computes. Other numbers are refused if a tensor is computed from them."""
        val = node.meta["val"]
        if isinstance(val, torch.SymInt):
            try:
                return size_of(val, self._symbols)
            except ShapeError as err:
                self._refuse_number(node, err.message)
                return 0
        if isinstance(val, torch.SymFloat) and not all(user.target in _CHECKS for user in node.users):
            sizes_only = all(
                isinstance(user.meta.get("val"), torch.SymInt | torch.SymFloat) for user in node.users
            )
            if not sizes_only:
                self._refuse_number(node, "a fractional number is computed from the size of an input")
            return 0.0
        return True

    def _refuse_number(self, node: fx.Node, fact: str) -> None:
        advice = "compute it with tensors, or remove the dimension from `dynamic`"
        self.problems.append(problem_at(node, "M218", fact, advice))

    def _inline(self, target: HigherOrderOperator, args: Sequence[Result]) -> list[Result]:
        assert str(target) in INLINED
        at = next(i for i, item in enumerate(args) if isinstance(item, fx.GraphModule))
        return self.run(args[at], args[at + 1 :])

    def _compute(self, call: TracedCall) -> Result:
        itself = call.itself()
        if itself is not None:
            return itself
        if call.overload is aten.as_strided.default:
            taken = call.as_take()
            if taken is None:
                self._refuse_write(call, "torch.as_strided reaches elements outside its operand")
                return call.args[0]
            call = taken
        source = self._source or source_of(call.node)
        if call.overload in _COPIES and call.copies_as_it_is():
            return Tracked(call.args[0].read())
        values = lower(
            self._builder,
            call.overload,
            call.read(call.args),
            {name: call.read(item) for name, item in call.kwargs.items()},
            source=source,
            expected=call.expected,
        )
        made = iter([self._tracked(call, index, value, source) for index, value in enumerate(values)])
        return _filled(call.result, made)

    def _tracked(self, call: TracedCall, index: int, value: Value, source: Source) -> Tracked:
        parent = call.viewed(index)
        if parent is None:
            return Tracked(value)

        def again(viewed: Value) -> Value:
            args = call.read(call.args, {parent: viewed})
            kwargs = {name: call.read(item, {parent: viewed}) for name, item in call.kwargs.items()}
            made = lower(self._builder, call.overload, args, kwargs, source=source, expected=call.expected)
            return made[index]

        view = View(parent, again, lambda numbers, sizes: call.on_numbers(parent, numbers, index, sizes))
        return Tracked(value, parent.storage, view, parent.storage.version)

    def _change_view(self, call: TracedCall) -> Result:
        functional = functional_form(call.overload)
        if call.overload.__name__.partition(".")[0] in _RESIZING or functional is None:
            self._refuse_write(call, f"{call.name} changes the memory of a tensor")
            return call.args[0]
        return self._compute(call.replaced(functional))

    def _write(self, call: TracedCall) -> Result:
        """Performs a call that writes to some of its arguments; its results are these arguments, in order."""
        targets = call.returned_targets()
        if targets is None or not all(isinstance(target, Tracked) for target in targets):
            self._refuse_write(call, f"{call.name} writes to a tensor in a way that is not supported")
            return [target for target in call.args if isinstance(target, Tracked)][:1]
        for target in targets:
            if call.overload in _OVERWRITES and target.view is None and not target.storage.is_seen:
                target.storage.owner = ""  # the content before the call is not used: it is not a state
        owners = [target.storage.owner for target in targets if target.storage.owner]
        if owners:
            self._refuse_owned(call, owners[0])
        else:
            self._carry_out(call, targets)
        return targets[0] if isinstance(call.result, Tensor) else targets

    def _carry_out(self, call: TracedCall, targets: Sequence[Tracked]) -> None:
        source = self._source or source_of(call.node)

        def emit(overload: OpOverload, *args: Argument) -> Value:
            return self.emit(overload, *args, source=source)

        try:
            for target, value in zip(targets, self._written(call, targets, source), strict=True):
                target.write(value, emit)
        except UnsupportedWriteError as err:
            self._refuse_write(call, f"{call.name} writes through a view: {err}")

    def _written(self, call: TracedCall, targets: Sequence[Tracked], source: Source) -> Sequence[Value]:
        """The new values of the tensors that a call writes to."""
        expected = [target.type for target in targets]
        args = call.read(call.args)
        kwargs = {name: call.read(item) for name, item in call.kwargs.items()}
        if (
            call.overload is aten.copy_.default
            and args[1].type == expected[0]
            and call.copies_like(targets[0])
        ):
            return [args[1]]
        functional = functional_form(call.overload)
        if functional is not None:
            values = lower(self._builder, functional, args, kwargs, source=source, expected=expected)
            if [value.type for value in values] == expected:
                return values
        return opaque(self._builder, call.overload, args, kwargs, source=source)

    def _refuse_owned(self, call: TracedCall, owner: str) -> None:
        if owner.startswith("input "):
            advice = "work on a copy: x = x.clone(), or use the operation without the underscore"
            self.problems.append(problem_at(call.node, "M206", f"{call.name} writes to {owner}", advice))
        else:
            advice = "a compiled model keeps no state; return the new state as an output"
            self.problems.append(problem_at(call.node, "M205", f"{call.name} writes to {owner}", advice))

    def _refuse_write(self, call: TracedCall, fact: str) -> None:
        self.problems.append(problem_at(call.node, "M210", fact, "write it without the in-place operation"))


def _resolved(item: Any, results: Mapping[fx.Node, Result]) -> Result:  # Any: arguments of a traced node
    if isinstance(item, fx.Node):
        return results[item]
    if isinstance(item, list | tuple):
        return [_resolved(part, results) for part in item]
    return item


def _filled(result: object, made: Iterator[Tracked]) -> Result:
    """A traced result with tracked tensors in place of its tensors."""
    if isinstance(result, Tensor):
        return next(made)
    if isinstance(result, list | tuple):
        return [_filled(item, made) for item in result]
    return result
