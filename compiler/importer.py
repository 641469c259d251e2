"""From a traced program (a torch.fx graph over aten) to nodes of the IR, with in-place writes made functional."""

from __future__ import annotations

import operator
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import HigherOrderOperator, OpOverload

from ..ir import Builder, Source, TensorType, Value
from ..ir.ops.call import Argument
from .errors import Problem
from .functionalize import Storage, Tracked, UnsupportedWriteError, View, aten
from .lowering import lower, opaque
from .refusals import INLINED, problem_at
from .sources import source_of
from .views import numbered

Result = Any  # what a traced node gives: Tracked, a number, None, a program, or a list of them

_CHECKS = {
    aten._assert_tensor_metadata.default,
    aten._assert_scalar.default,
    aten._assert_async.msg,
    aten.sym_constrain_range.default,
    aten.sym_constrain_range_for_size.default,
}
_RETURNING_THEIR_INPUT = {  # in evaluation mode, though the schema does not say so
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
}
_COPIES = {
    aten.clone.default,
    aten.lift_fresh_copy.default,
    aten._to_copy.default,
    aten.to.dtype,
    aten.to.device,
    aten.to.dtype_layout,
}
_RESIZING = {"resize_", "resize_as_", "set_", "_resize_output_"}


class Importer:
    """Runs a traced program once, on values of the graph that is being built; collects what it has to refuse."""

    def __init__(self, builder: Builder) -> None:
        self.problems: list[Problem] = []
        self._builder = builder

    def run(self, program: fx.GraphModule, arguments: Sequence[Result]) -> list[Result]:
        """What the program gives for its placeholders' values."""
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
        """Append a call that has one result."""
        (value,) = lower(self._builder, overload, args, {}, source=source or Source())
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
        if not isinstance(node.target, OpOverload):
            assert callable(node.target)
            return node.target(*args, **kwargs)  # getitem, or arithmetic on sizes
        if node.target in _CHECKS:
            return None
        call = _Call(node, node.target, args, kwargs)
        if torch.Tag.inplace_view in call.overload.tags:
            return self._change_view(call)
        if call.written:
            return self._write(call)
        return self._compute(call)

    def _inline(self, target: HigherOrderOperator, args: Sequence[Result]) -> list[Result]:
        assert str(target) in INLINED
        at = next(i for i, item in enumerate(args) if isinstance(item, fx.GraphModule))
        return self.run(args[at], args[at + 1 :])

    def _compute(self, call: _Call) -> Result:
        parent = call.aliased()
        if parent is not None and call.is_same_as(parent):
            return parent
        if call.overload is aten.as_strided.default:
            taken = call.as_take()
            if taken is None:
                self._refuse_write(call, "torch.as_strided reaches elements outside its operand")
                return call.args[0]
            call = taken
        source = source_of(call.node)
        tensors = list(_tensors(call.result))
        if call.overload in _COPIES and call.copies_as_it_is():
            return Tracked(call.args[0].read())
        values = lower(
            self._builder,
            call.overload,
            call.read(call.args),
            {name: call.read(item) for name, item in call.kwargs.items()},
            source=source,
            expected=[TensorType.of(tensor) for tensor in tensors],
        )
        made = iter(
            [
                self._tracked(call, index, value, tensor, source)
                for index, (value, tensor) in enumerate(zip(values, tensors, strict=True))
            ]
        )
        return _filled(call.result, made)

    def _tracked(self, call: _Call, index: int, value: Value, tensor: Tensor, source: Source) -> Tracked:
        parent = call.aliased(tensor)
        if parent is None:
            return Tracked(value)

        def again(viewed: Value) -> Value:
            args = call.read(call.args, {parent: viewed})
            kwargs = {name: call.read(item, {parent: viewed}) for name, item in call.kwargs.items()}
            return lower(self._builder, call.overload, args, kwargs, source=source, expected=call.expected)[
                index
            ]

        view = View(parent, again, lambda numbers: call.on_numbers(parent, numbers, index))
        return Tracked(value, parent.storage, view, parent.storage.version)

    def _change_view(self, call: _Call) -> Result:
        functional = _functional(call.overload)
        if call.overload.__name__.partition(".")[0] in _RESIZING or functional is None:
            self._refuse_write(call, f"{call.name} changes the memory of a tensor")
            return call.args[0]
        return self._compute(_Call(call.node, functional, call.args, call.kwargs))

    def _write(self, call: _Call) -> Result:
        """Carry out a call that writes to some of its arguments; they are what it gives, in order."""
        targets = call.returned_targets()
        if targets is None or not all(isinstance(target, Tracked) for target in targets):
            self._refuse_write(call, f"{call.name} writes to a tensor in a way that is not supported")
            return [target for target in call.args if isinstance(target, Tracked)][:1]
        owners = [target.storage.owner for target in targets if target.storage.owner]
        if owners:
            self._refuse_owned(call, owners[0])
        else:
            self._carry_out(call, targets)
        return targets[0] if isinstance(call.result, Tensor) else targets

    def _carry_out(self, call: _Call, targets: Sequence[Tracked]) -> None:
        source = source_of(call.node)

        def emit(overload: OpOverload, *args: Argument) -> Value:
            return self.emit(overload, *args, source=source)

        try:
            for target, value in zip(targets, self._written(call, targets, source), strict=True):
                target.write(value, emit)
        except UnsupportedWriteError as err:
            self._refuse_write(call, f"{call.name} writes through a view: {err}")

    def _written(self, call: _Call, targets: Sequence[Tracked], source: Source) -> Sequence[Value]:
        """The new values of what a call writes to."""
        expected = [target.type for target in targets]
        args = call.read(call.args)
        kwargs = {name: call.read(item) for name, item in call.kwargs.items()}
        if (
            call.overload is aten.copy_.default
            and args[1].type == expected[0]
            and call.copies_like(targets[0])
        ):
            return [args[1]]
        functional = _functional(call.overload)
        if functional is not None:
            values = lower(self._builder, functional, args, kwargs, source=source, expected=expected)
            if [value.type for value in values] == expected:
                return values
        return opaque(self._builder, call.overload, args, kwargs, source=source)

    def _refuse_owned(self, call: _Call, owner: str) -> None:
        if owner.startswith("input "):
            advice = "work on a copy: x = x.clone(), or use the form without the underscore"
            self.problems.append(problem_at(call.node, "M206", f"{call.name} writes to {owner}", advice))
        else:
            advice = "a compiled model keeps no state; give the new state back as an output"
            self.problems.append(problem_at(call.node, "M205", f"{call.name} writes to {owner}", advice))

    def _refuse_write(self, call: _Call, fact: str) -> None:
        self.problems.append(problem_at(call.node, "M210", fact, "write it without the in-place operation"))


class _Call:
    """One call of an overload in the traced program, its tensors resolved to what stands for them."""

    def __init__(
        self, node: fx.Node, overload: OpOverload, args: Sequence[Result], kwargs: Mapping[str, Result]
    ) -> None:
        self.node, self.overload, self.args, self.kwargs = node, overload, args, kwargs
        self.result = node.meta.get("val")

    @property
    def name(self) -> str:
        """The overload as a user reads it."""
        return str(self.overload).removesuffix(".default")

    @property
    def expected(self) -> list[TensorType]:
        """Types of the tensors that it gave when it was traced."""
        return [TensorType.of(tensor) for tensor in _tensors(self.result)]

    @property
    def written(self) -> list[torch.Argument]:
        """The schema's arguments that it writes to."""
        declared = self.overload._schema.arguments
        return [a for a in declared if a.alias_info is not None and a.alias_info.is_write]

    def read(self, item: Result, replaced: Mapping[Tracked, Value] | None = None) -> Argument:
        """An argument with values in place of what is tracked."""
        if isinstance(item, Tracked):
            return (replaced or {}).get(item) or item.read()
        if isinstance(item, list | tuple):
            return [self.read(part, replaced) for part in item]
        return item

    def returned_targets(self) -> list[Tracked] | None:
        """The written argument that each result is; None when a result is not one, or one is not returned."""
        bound = self._bound()
        by_alias = {
            name: bound.get(argument.name)
            for argument in self.written
            for name in (argument.alias_info.before_set if argument.alias_info else ())
        }
        found = []
        for returned in self.overload._schema.returns:
            names = returned.alias_info.before_set if returned.alias_info is not None else set()
            target = next((by_alias[name] for name in names if name in by_alias), None)
            if target is None:
                return None
            found.append(target)
        return found if len(found) == len(self.written) else None

    def aliased(self, tensor: Tensor | None = None) -> Tracked | None:
        """The argument whose memory the result shares, if any."""
        if self.overload in _RETURNING_THEIR_INPUT:
            return next(tracked for _, tracked in self._tensor_arguments())
        result = self.result if tensor is None else tensor
        if not isinstance(result, Tensor):
            return None
        key = result.untyped_storage()._cdata
        for node, tracked in self._tensor_arguments():
            if node.meta["val"].untyped_storage()._cdata == key:
                return tracked
        return None

    def is_same_as(self, parent: Tracked) -> bool:
        """Whether the result is that argument itself: the same elements of the same memory."""
        if self.overload in _RETURNING_THEIR_INPUT:
            return True
        return isinstance(self.result, Tensor) and _layout(self.result) == _layout(self._traced(parent))

    def copies_as_it_is(self) -> bool:
        """Whether a copy has the type and the layout of what it copies."""
        if not isinstance(self.args[0], Tracked) or not isinstance(self.result, Tensor):
            return False
        original = self._traced(self.args[0])
        return (
            self.result.dtype is original.dtype
            and self.result.stride() == original.stride()
            and self.result.is_conj() == original.is_conj()
            and self.result.is_neg() == original.is_neg()
        )

    def copies_like(self, target: Tracked) -> bool:
        """Whether the layout of what `copy_` reads can stand for the target's."""
        strides = [self._traced(item).stride() for item in self.args[:2]]
        return target.view is not None or strides[0] == strides[1]

    def as_take(self) -> _Call | None:
        """`as_strided` as a selection of elements by number, which no layout can change; None when it cannot be."""
        original, result = self._traced(self.args[0]), self.result
        assert isinstance(result, Tensor)
        extent = original.untyped_storage().nbytes() // original.element_size()
        where = torch.full((extent,), -1)
        where.as_strided(original.shape, original.stride(), int(original.storage_offset())).copy_(
            numbered(original.shape)
        )
        taken = where.as_strided(result.shape, result.stride(), int(result.storage_offset())).clone()
        if bool((taken < 0).any()):
            return None
        return _Call(self.node, aten.take.default, [self.args[0], taken], {})

    def on_numbers(self, parent: Tracked, numbers: Tensor, index: int) -> Tensor:
        """Result `index` of the call with `numbers` in the place of `parent`."""
        traced = _tensor_number(self.result, index)
        if traced.is_conj() or traced.is_neg():
            raise UnsupportedWriteError("the view changes signs")

        def bound(item: Result) -> Argument:
            if isinstance(item, Tracked):
                shape, dtype = item.type.shape, item.type.dtype.torch
                return numbers if item is parent else torch.zeros((), dtype=dtype).expand(shape)
            return [bound(part) for part in item] if isinstance(item, list | tuple) else item

        results: object = self.overload(
            *bound(self.args), **{name: bound(i) for name, i in self.kwargs.items()}
        )
        return _tensor_number(results, index)

    def _bound(self) -> dict[str, Result]:
        names = [a.name for a in self.overload._schema.arguments]
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}

    def _traced(self, tracked: Tracked) -> Tensor:
        found: Tensor = next(node.meta["val"] for node, item in self._tensor_arguments() if item is tracked)
        return found

    def _tensor_arguments(self) -> Iterator[tuple[fx.Node, Tracked]]:
        yield from _paired((self.node.args, self.node.kwargs), (self.args, self.kwargs))


def _functional(overload: OpOverload) -> OpOverload | None:
    """The overload that computes what this one writes, when torch has it with the same arguments."""
    packet, _, variant = overload.__name__.partition(".")
    if not packet.endswith("_") or packet.startswith("__"):
        return None
    functional = getattr(getattr(torch.ops, overload.namespace), packet[:-1], None)
    names = [a.name for a in overload._schema.arguments]
    overloads = (
        [getattr(functional, name) for name in functional.overloads()] if functional is not None else []
    )
    overloads.sort(key=lambda found: found._overloadname != (variant or "default"))
    fitting = (found for found in overloads if [a.name for a in found._schema.arguments] == names)
    return next(fitting, None)


def _resolved(item: Any, results: Mapping[fx.Node, Result]) -> Result:  # Any: arguments of a traced node
    if isinstance(item, fx.Node):
        return results[item]
    if isinstance(item, list | tuple):
        return [_resolved(part, results) for part in item]
    return item


def _paired(traced: Any, resolved: Result) -> Iterator[tuple[fx.Node, Tracked]]:  # Any: as above
    if isinstance(traced, fx.Node):
        if isinstance(resolved, Tracked):
            yield traced, resolved
    elif isinstance(traced, Mapping):
        for name, item in traced.items():
            yield from _paired(item, resolved[name])
    elif isinstance(traced, list | tuple):
        for item, part in zip(traced, resolved, strict=True):
            yield from _paired(item, part)


def _tensors(result: object) -> Iterator[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from _tensors(item)


def _tensor_number(result: object, index: int) -> Tensor:
    return tuple(_tensors(result))[index]


def _filled(result: object, made: Iterator[Tracked]) -> Result:
    """A traced result with tracked tensors in the place of its tensors."""
    if isinstance(result, Tensor):
        return next(made)
    if isinstance(result, list | tuple):
        return [_filled(item, made) for item in result]
    return result


def _layout(tensor: Tensor) -> tuple[object, ...]:
    return (
        tensor.dtype,
        tensor.size(),
        tensor.stride(),
        int(tensor.storage_offset()),
        tensor.is_conj(),
        tensor.is_neg(),
    )
