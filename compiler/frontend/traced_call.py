"""One call of a torch overload in a traced program: operands, writes, results, and shared memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch._ops import OpOverload

from ...ir import DType, TensorType, Value
from ...ir.ops.call import Argument
from ...ir.sizes import dimensions_of, evaluated, with_sizes
from ...ir.symbolic import NO_SYMBOLS, Symbols, size_of
from .functionalize import Tracked, UnsupportedWriteError, aten
from .views import numbered

Result = Any  # results of a traced node: Tracked, a number, None, a program, or a list of these

_RETURNING_THEIR_INPUT = {  # in evaluation mode; the schema does not declare it
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
    aten.dropout_.default,
    aten.feature_dropout_.default,
    aten.alpha_dropout_.default,
    aten.feature_alpha_dropout_.default,
}


class TracedCall:
    """One call of an overload in the traced program, with its tensors resolved to tracked tensors."""

    def __init__(
        self,
        node: fx.Node,
        overload: OpOverload,
        args: Sequence[Result],
        kwargs: Mapping[str, Result],
        symbols: Symbols = NO_SYMBOLS,
    ) -> None:
        self.node, self.overload, self.args, self.kwargs = node, overload, args, kwargs
        self.result = node.meta.get("val")
        self._symbols = symbols

    def replaced(self, overload: OpOverload) -> TracedCall:
        """The call of another overload with the same arguments."""
        return TracedCall(self.node, overload, self.args, self.kwargs, self._symbols)

    @property
    def name(self) -> str:
        """Name of the overload for messages."""
        return str(self.overload).removesuffix(".default")

    @property
    def expected(self) -> list[TensorType]:
        """Types of the result tensors in the trace."""
        return [
            TensorType(self._sizes(tensor.shape), DType.of(tensor.dtype))
            for tensor in tensors_of(self.result)
        ]

    @property
    def written(self) -> list[torch.Argument]:
        """Arguments of the schema that the overload writes to."""
        if self.overload in _RETURNING_THEIR_INPUT:
            return []
        declared = self.overload._schema.arguments
        return [a for a in declared if a.alias_info is not None and a.alias_info.is_write]

    def read(self, item: Result, replaced: Mapping[Tracked, Value] | None = None) -> Argument:
        """An argument with values in place of tracked tensors."""
        if isinstance(item, Tracked):
            return (replaced or {}).get(item) or item.read()
        if isinstance(item, list | tuple):
            return [self.read(part, replaced) for part in item]
        return item

    def returned_targets(self) -> list[Tracked] | None:
        """For each result, the written argument that it returns; None if a result is no such argument, or one is not
        returned.
        """
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

    def itself(self) -> Tracked | None:
        """The argument that the result equals: the same elements in the same memory."""
        if self.overload in _RETURNING_THEIR_INPUT:
            return next(tracked for _, tracked in self._tensor_arguments())
        if not isinstance(self.result, Tensor):
            return None
        layout = self._layout(self.result)
        return next((t for n, t in self._sharing(self.result) if self._layout(n.meta["val"]) == layout), None)

    def viewed(self, index: int) -> Tracked | None:
        """The argument that result `index` is a view of, if any."""
        sharing = {tracked: None for _, tracked in self._sharing(_tensor_number(self.result, index))}
        if len(sharing) < 2:
            return next(iter(sharing), None)
        shown = (t for t in sharing if bool((self.on_numbers(t, numbered(t.type.shape), index) >= 0).all()))
        return next(shown, next(iter(sharing)))

    def copies_as_it_is(self) -> bool:
        """True if a copy has the type and the layout of its source."""
        if not isinstance(self.args[0], Tracked) or not isinstance(self.result, Tensor):
            return False
        original = self._traced(self.args[0])
        return (
            self.result.dtype is original.dtype
            and self._sizes(self.result.stride()) == self._sizes(original.stride())
            and self.result.is_conj() == original.is_conj()
            and self.result.is_neg() == original.is_neg()
        )

    def copies_like(self, target: Tracked) -> bool:
        """True if the layout of the source of `copy_` can replace the target's."""
        strides = [self._sizes(self._traced(item).stride()) for item in self.args[:2]]
        return target.view is not None or strides[0] == strides[1]

    def as_take(self) -> TracedCall | None:
        """`as_strided` as a selection of elements by number, independent of layouts; None if impossible."""
        original, result = self._traced(self.args[0]), self.result
        assert isinstance(result, Tensor)
        if any(dimensions_of(self._sizes(t.shape)) for t in (original, result)):
            return None
        extent = original.untyped_storage().nbytes() // original.element_size()
        where = torch.full((extent,), -1)
        where.as_strided(original.shape, original.stride(), int(original.storage_offset())).copy_(
            numbered(original.shape)
        )
        taken = where.as_strided(result.shape, result.stride(), int(result.storage_offset())).clone()
        if bool((taken < 0).any()):
            return None
        return TracedCall(self.node, aten.take.default, [self.args[0], taken], {}, self._symbols)

    def on_numbers(
        self, parent: Tracked, numbers: Tensor, index: int, sizes: Mapping[str, int] | None = None
    ) -> Tensor:
        """Result `index` of the call with `numbers` in place of `parent`, and -1 in place of other tensors.

        `sizes` are those of dynamic dimensions, by default those of the example.
        """
        traced = _tensor_number(self.result, index)
        if traced.is_conj() or traced.is_neg():
            raise UnsupportedWriteError("the view changes signs")

        def fixed(item: Result) -> Result:
            return item if sizes is None else with_sizes(item, lambda size: evaluated(size, sizes))

        def bound(item: Result) -> Argument:
            if isinstance(item, Tracked):
                others = torch.tensor(-1, device=numbers.device)
                return numbers if item is parent else others.expand(fixed(item.type.shape))
            if isinstance(item, Tensor):
                return item.to(numbers.device)
            return [bound(part) for part in item] if isinstance(item, list | tuple) else fixed(item)

        kwargs = {name: bound(item) for name, item in self.kwargs.items()}
        return _tensor_number(self.overload(*bound(self.args), **kwargs), index)

    def _sizes(self, numbers: Sequence[Any]) -> tuple[int, ...]:  # Any: integers, or symbolic ones
        return tuple(size_of(number, self._symbols) for number in numbers)

    def _layout(self, tensor: Tensor) -> tuple[object, ...]:
        return (
            tensor.dtype,
            self._sizes(tensor.size()),
            self._sizes(tensor.stride()),
            self._sizes([tensor.storage_offset()]),
            tensor.is_conj(),
            tensor.is_neg(),
        )

    def _bound(self) -> dict[str, Result]:
        names = [a.name for a in self.overload._schema.arguments]
        return {**dict(zip(names, self.args, strict=False)), **self.kwargs}

    def _traced(self, tracked: Tracked) -> Tensor:
        found: Tensor = next(node.meta["val"] for node, item in self._tensor_arguments() if item is tracked)
        return found

    def _sharing(self, tensor: Tensor) -> Iterator[tuple[fx.Node, Tracked]]:
        """The arguments that share memory with a result."""
        key = tensor.untyped_storage()._cdata
        for node, tracked in self._tensor_arguments():
            if node.meta["val"].untyped_storage()._cdata == key:
                yield node, tracked

    def _tensor_arguments(self) -> Iterator[tuple[fx.Node, Tracked]]:
        yield from _paired((self.node.args, self.node.kwargs), (self.args, self.kwargs))


def functional_form(overload: OpOverload) -> OpOverload | None:
    """The overload without writes that computes the same, if torch has one with the same arguments."""
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


def tensors_of(result: object) -> Iterator[Tensor]:
    """The tensors in the result of a call, in order."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, list | tuple):
        for item in result:
            yield from tensors_of(item)


def _paired(traced: Any, resolved: Result) -> Iterator[tuple[fx.Node, Tracked]]:  # Any: as above
    if isinstance(traced, fx.Node):
        if isinstance(resolved, Tracked):
            yield traced, resolved
    elif isinstance(traced, Mapping):
        for name, item in traced.items():
            yield from _paired(item, resolved[name])
    elif isinstance(traced, list | tuple):
        for item, part in zip(traced, resolved, strict=False):
            yield from _paired(item, part)


def _tensor_number(result: object, index: int) -> Tensor:
    return tuple(tensors_of(result))[index]
