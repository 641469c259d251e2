"""The intermediate representation: graphs, their types, operators, text form, verifier and interpreters."""

from . import ops
from .errors import IRError, OverflowBoundError, ParseError, ShapeError, UnsupportedError, VerifyError
from .graph import Builder, Graph, Node, Source, rewrite
from .interpret import rebatch, run, run_integer
from .ops.base import OPERATORS, Op
from .tensor_type import DType, Quantization, TensorType, Value
from .text import dump, node_text, parse, type_text
from .verify import verify

__all__ = [
    "OPERATORS",
    "Builder",
    "DType",
    "Graph",
    "IRError",
    "Node",
    "Op",
    "OverflowBoundError",
    "ParseError",
    "Quantization",
    "ShapeError",
    "Source",
    "TensorType",
    "UnsupportedError",
    "Value",
    "VerifyError",
    "dump",
    "node_text",
    "ops",
    "parse",
    "rebatch",
    "rewrite",
    "run",
    "run_integer",
    "type_text",
    "verify",
]
