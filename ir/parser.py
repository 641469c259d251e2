"""Parser of the text form: `parse` reads the output of `dump`, or a graph written in a test."""

from __future__ import annotations

import ast
import json
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

import torch

from ..specs.root_error import expect, message_of
from .coded_numbers import NUMBER_FORMS, CodedNumbers
from .element_type import DType
from .encoding import Encoding
from .errors import IRError, ParseError
from .graph import NOWHERE, Graph, Node, Source
from .numbers import AnyNumbers, Numbers, numbers_of
from .ops.base import OPERATORS, Op
from .params import Entry, Params, entries_of
from .precision import Precision
from .sizes import Dimension, Size, largest, smallest
from .tensor_type import TensorType, Value


def parse(
    text: str,
    *,
    params: Mapping[str, Entry] | None = None,
    fill: Callable[[Value], torch.Tensor] | None = None,
    numbers: Mapping[str, AnyNumbers] | None = None,
) -> Graph:
    """The graph of a text; a constant that is not in `params` is `fill(value)`, or zeros without `fill`.

    `numbers` are the scales, zero points and levels that the text only refers to: see `text.long_numbers`.
    """
    expect(text, str, "parse(text)", "the text of a graph", "dump(graph) writes it")
    return _Parser(text, entries_of(params or {}), fill or _zeros, numbers or {}).graph()


def _zeros(value: Value) -> torch.Tensor:
    return torch.zeros(value.type.shape, dtype=value.type.dtype.torch)


_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)
      | (?P<comment>\#[^\n]*)
      | (?P<size>\$\{[^}]*\})
      | (?P<string>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<word>[A-Za-z0-9_.\-+]+)
      | (?P<mark>[%@(){}\[\]<>=:,])
    """,
    re.VERBOSE,
)


_ELEMENT_TYPES = frozenset(dtype.value for dtype in DType)
_LISTS = frozenset({"scale", "zero", "levels"})


def _source(comment: str) -> Source | None:
    """The source in a comment `# "module", "location"`; None for any other comment."""
    match = re.fullmatch(r'#\s*("(?:[^"\\]|\\.)*"), ("(?:[^"\\]|\\.)*")\s*', comment)
    return Source(json.loads(match[1]), json.loads(match[2])) if match else None


class _Parser:
    """Recursive descent over tokens; only attribute tuples nest."""

    def __init__(
        self,
        text: str,
        params: Mapping[str, Entry],
        fill: Callable[[Value], torch.Tensor],
        numbers: Mapping[str, AnyNumbers],
    ) -> None:
        self._text, self._params, self._fill, self._long = text, params, fill, numbers
        self._table = {
            int(k): ast.literal_eval(v) for k, v in re.findall(r"^@(\d+) = (\(.*\))$", text, re.MULTILINE)
        }
        self._tokens = self._tokenize(re.sub(r"^@\d+ = \(.*\)$", "", text, flags=re.MULTILINE))
        self._at = 0
        self._values: dict[str, Value] = {}
        self._dimensions: dict[str, Size] = {}

    def _tokenize(self, text: str) -> list[tuple[str, str, int]]:
        tokens, at = [], 0
        while at < len(text):
            match = _TOKEN.match(text, at)
            if match is None:
                raise self._error(at, f"unexpected character {text[at]!r}")
            kind = str(match.lastgroup)
            if kind != "space" and not (kind == "comment" and _source(match[0]) is None):
                tokens.append((kind, match[0], at))
            at = match.end()
        return [*tokens, ("end", "", len(text))]

    def graph(self) -> Graph:
        while self._peek() == "dim":
            self._dimension()
        self._expect("graph")
        self._expect("(")
        inputs = tuple(self._list(")", self._declaration))
        self._expect("{")
        precisions: dict[str, Precision] = {}
        while self._peek() == "bits":
            self._next()
            at, layer = self._tokens[self._at][2], self._identifier()
            self._expect(":")
            precisions[layer] = self._precision(at)
        constants: list[Value] = []
        while self._peek() == "const":
            self._next()
            constants.append(self._declaration())
        nodes: list[Node] = []
        while self._peek() != "return":
            nodes.append(self._node())
        self._next()
        names, outputs = [], []
        while self._peek() != "}":
            names.append(self._identifier())
            self._expect(":")
            outputs.append(self._use())
            if self._peek() == ",":
                self._next()
        self._expect("}")
        if self._tokens[self._at][0] != "end":
            raise self._error(self._tokens[self._at][2], "text after the graph")
        given = self._params
        filled = {v.name: given[v.name] if v.name in given else self._fill(v) for v in constants}
        return Graph(inputs, tuple(outputs), tuple(nodes), Params(filled), tuple(names), precisions)

    def _dimension(self) -> None:
        self._next()
        at, name = self._tokens[self._at][2], self._identifier()
        self._expect("=")
        example = self._next()
        self._expect("in")
        low, _, high = self._next().partition("..")
        try:
            dimension = Dimension(name, int(example), int(low), int(high) if high else None)
        except (IRError, ValueError) as err:
            raise self._error(at, message_of(err)) from err
        self._dimensions[name] = dimension.size

    def _size(self, text: str, at: int) -> int:
        """Size of an expression `${...}`."""
        try:
            return _size_of(ast.parse(text[2:-1], mode="eval").body, self._dimensions)
        except (SyntaxError, ValueError, ZeroDivisionError):
            known = ", ".join(self._dimensions) or "none"
            raise self._error(at, f"{text} is not a size over the dimensions, which are {known}") from None

    def _precision(self, at: int) -> Precision:
        given: dict[str, Any] = {}  # Any: python literals
        while self._tokens[self._at][0] == "word" and self._peek() not in ("bits", "const", "return"):
            name = self._identifier()
            self._expect("=")
            given[name] = self._literal()
            if self._peek() == ",":
                self._next()
        try:
            return Precision(**given)
        except (IRError, TypeError) as err:
            raise self._error(at, message_of(err)) from err

    def _node(self) -> Node:
        start = self._tokens[self._at][2]
        results = [self._declaration()]
        while self._peek() == ",":
            self._next()
            results.append(self._declaration())
        self._expect("=")
        op = self._op()
        self._expect("(")
        operands = self._list(")", self._operand)
        source = NOWHERE
        if self._tokens[self._at][0] == "comment":
            source = _source(self._next()) or source
        if operands and operands[-1] is None:
            raise self._error(start, "a trailing operand is none; remove it")
        return Node(op, tuple(operands), tuple(results), source)

    def _op(self) -> Op:
        at = self._tokens[self._at][2]
        name = self._next()
        cls = OPERATORS.get(name)
        if cls is None:
            raise self._error(at, f"unknown operator {name!r}")
        values: dict[str, Any] = {}  # Any: attribute values are python literals
        if self._peek() == "{":
            self._next()
            while self._peek() != "}":
                key = self._identifier()
                self._expect("=")
                values[key] = self._literal()
                if self._peek() == ",":
                    self._next()
            self._next()
        unknown = values.keys() - {f.name for f in fields(cls)}
        if unknown:
            raise self._error(at, f"{name} has no attribute {', '.join(sorted(unknown))}")
        try:
            return cls(**values)
        except (IRError, TypeError, ValueError) as err:
            raise self._error(at, f"{name}: {message_of(err)}") from err

    def _declaration(self) -> Value:
        at = self._tokens[self._at][2]
        self._expect("%")
        name = self._identifier()
        self._expect(":")
        value = Value(name, self._type())
        if name in self._values:
            raise self._error(at, f"%{name} is defined twice")
        self._values[name] = value
        return value

    def _type(self) -> TensorType:
        at = self._tokens[self._at][2]
        try:
            dtype = DType(self._next())
            self._expect("[")
            text = ""
            while self._peek() != "]":
                text += self._next()
            self._expect("]")
            parts = re.split(r"x(?![^{]*\})", text) if text else []  # at each x outside braces
            shape = tuple(self._size(n, at) if n.startswith("$") else int(n) for n in parts)
            return TensorType(shape, dtype, self._quantization(dtype) if self._peek() == "<" else None)
        except (IRError, ValueError) as err:
            if isinstance(err, ParseError):
                raise
            raise self._error(at, message_of(err)) from err

    def _quantization(self, dtype: DType) -> Encoding:
        self._next()
        values: dict[str, Any] = {"bits": 8 * dtype.bytes}  # Any: python literals, tensors, numbers
        while self._peek() != ">":
            key = self._identifier()
            self._expect("=")
            values[key] = self._numbers() if key in _LISTS else self._literal()
            if self._peek() == ",":
                self._next()
        self._next()
        if "scale" not in values:
            raise self._error(self._tokens[self._at][2], "a quantization needs a scale")
        return Encoding(
            values["scale"],
            values.get("zero", (0,)),
            values["bits"],
            values.get("axis"),
            values.get("group"),
            values.get("levels"),
        )

    def _numbers(self) -> Any:  # Any: a tuple of numbers, a tensor of them, long or coded numbers
        if self._peek() in NUMBER_FORMS:
            return self._coded_numbers()
        if self._peek() not in _ELEMENT_TYPES:
            return self._list_of_numbers()
        at = self._tokens[self._at][2]
        dtype = DType(self._next())
        if self._peek() != "[":
            return torch.tensor(self._list_of_numbers(), dtype=dtype.torch)
        name = dtype.value + "".join(self._next() for _ in range(5))  # [count]@digest
        if name not in self._long:
            raise self._error(at, f"the numbers {name} are missing")
        return self._long[name]

    def _coded_numbers(self) -> CodedNumbers:
        form = self._next()
        self._expect("(")
        at = self._tokens[self._at][2]
        parts = self._list(")", self._numbers)
        if any(isinstance(part, tuple) for part in parts):
            raise self._error(at, f"the parts of {form} need their element types, as u8(126, 125)")
        found = [part if isinstance(part, Numbers) else numbers_of(part) for part in parts]
        return CodedNumbers(form, found)

    def _list_of_numbers(self) -> tuple[Any, ...]:  # Any: integers or reals
        if self._peek() != "@":
            found = self._literal()
            return found if isinstance(found, tuple) else (found,)
        at = self._tokens[self._at][2]
        self._next()
        row = self._next()
        if not row.isdigit() or int(row) not in self._table:
            raise self._error(at, f"there is no list @{row}")
        listed: tuple[Any, ...] = self._table[int(row)]  # Any: integers or reals
        return listed

    def _literal(self) -> Any:  # Any: a python literal
        kind, token, at = self._tokens[self._at]
        self._at += 1
        if token == "(":
            items = []
            while self._peek() != ")":
                items.append(self._literal())
                if self._peek() == ",":
                    self._next()
            self._next()
            return tuple(items)
        if kind == "size":
            return self._size(token, at)
        if kind == "word" and token.lstrip("+-") in ("inf", "nan"):
            return float(token)
        try:
            return ast.literal_eval(token)
        except (ValueError, SyntaxError):
            raise self._error(at, f"{token!r} is not a value") from None

    def _operand(self) -> Value | None:
        if self._peek() == "none":
            self._next()
            return None
        return self._use()

    def _use(self) -> Value:
        at = self._tokens[self._at][2]
        self._expect("%")
        name = self._identifier()
        if name not in self._values:
            raise self._error(at, f"%{name} is not defined")
        return self._values[name]

    def _identifier(self) -> str:
        kind, token, at = self._tokens[self._at]
        if kind not in ("word", "string"):
            raise self._error(at, f"expected a name, found {token!r}")
        self._at += 1
        return json.loads(token) if kind == "string" else token

    def _list(self, end: str, item: Callable[[], Any]) -> list[Any]:  # Any: the result of `item`
        items = []
        while self._peek() != end:
            items.append(item())
            if self._peek() == ",":
                self._next()
            elif self._peek() != end:
                raise self._error(
                    self._tokens[self._at][2], f"expected ',' or {end!r}, found {self._peek()!r}"
                )
        self._next()
        return items

    def _peek(self) -> str:
        return self._tokens[self._at][1]

    def _next(self) -> str:
        kind, token, at = self._tokens[self._at]
        if kind == "end":
            raise self._error(at, "the text ends too early")
        self._at += 1
        return token

    def _expect(self, token: str) -> None:
        at = self._tokens[self._at][2]
        if (found := self._peek()) != token:
            what = repr(found) if found else "the end of the text"
            raise self._error(at, f"expected {token!r}, found {what}")
        self._at += 1

    def _error(self, at: int, message: str) -> ParseError:
        line = self._text.count("\n", 0, at) + 1
        column = at - (self._text.rfind("\n", 0, at) + 1) + 1
        return ParseError(f"{line}:{column}: {message}")


def _size_of(tree: ast.expr, dimensions: Mapping[str, Size]) -> int:
    """The size of an expression over dimensions; ValueError for anything else."""
    match tree:
        case ast.Constant(value=int() as number):
            return number
        case ast.Name(id=name) if name in dimensions:
            return dimensions[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            return -_size_of(operand, dimensions)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            return _ARITHMETIC[type(op)](_size_of(left, dimensions), _size_of(right, dimensions))
        case ast.Call(func=ast.Name(id="max" | "min" as name), args=[left, right]):
            chosen = largest if name == "max" else smallest
            return chosen(_size_of(left, dimensions), _size_of(right, dimensions))
    raise ValueError(f"{ast.unparse(tree)} is not a size")


_ARITHMETIC: Mapping[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
