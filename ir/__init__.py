"""The intermediate representation: graphs, their types, operators, text form, verifier and interpreters."""

from . import ops
from .builder import Builder, rewrite
from .codebooks import coded_weights, decode_codebooks, encode_codebooks
from .coded_numbers import CodedNumbers
from .coupling import Coupling, Kept, couple
from .cutting import changed_statistics, cut_graph, run_masked
from .digraph import Vertex, digraph
from .element_type import DType, element_bytes
from .encoding import Encoding
from .errors import IRError, OverflowBoundError, ParseError, ShapeError, UnsupportedError, VerifyError
from .graph import NOWHERE, Graph, Node, Source
from .interpret import call_integer, rebatch, run, run_integer
from .numbers import Numbers, numbers_of
from .ops.base import OPERATORS, Op
from .params import Entry, LazyTensor, Params
from .parser import parse
from .precision import BINARY_BITS, FLOAT_BITS, Precision
from .tensor_files import open_tensors, write_tensors
from .tensor_type import TensorType, Value
from .text import dump, long_numbers, node_text, type_text
from .verify import verify

__all__ = [
    "BINARY_BITS",
    "FLOAT_BITS",
    "NOWHERE",
    "OPERATORS",
    "Builder",
    "CodedNumbers",
    "Coupling",
    "DType",
    "Encoding",
    "Entry",
    "Graph",
    "IRError",
    "Kept",
    "LazyTensor",
    "Node",
    "Numbers",
    "Op",
    "OverflowBoundError",
    "Params",
    "ParseError",
    "Precision",
    "ShapeError",
    "Source",
    "TensorType",
    "UnsupportedError",
    "Value",
    "VerifyError",
    "Vertex",
    "call_integer",
    "changed_statistics",
    "coded_weights",
    "couple",
    "cut_graph",
    "decode_codebooks",
    "digraph",
    "dump",
    "element_bytes",
    "encode_codebooks",
    "long_numbers",
    "node_text",
    "numbers_of",
    "open_tensors",
    "ops",
    "parse",
    "rebatch",
    "rewrite",
    "run",
    "run_integer",
    "run_masked",
    "type_text",
    "verify",
    "write_tensors",
]
