"""Torch backend: a graph as a rewritten `torch.nn.Module` with readable source.

to_module(graph)                   ordinary float layers under the user's names; computes the bits of `ir.run`
to_module(graph, form="qdq")       quantize and dequantize around float layers: for torch.compile and ONNX
to_module(graph, form="eager")     torch's int8 kernels, called one by one
to_module(graph, form="native")    the integers of the graph by kernels in C: the fastest on a CPU
read_back(graph, module)           the graph with the weights of a trained float module
"""

from .artifact import TorchArtifact
from .compare import Mismatch, output_mismatch, requantization_mismatch
from .emit import Form, TorchOptions, emit, read_back, to_module
from .lazy_module import lazy_module

__all__ = [
    "Form",
    "Mismatch",
    "TorchArtifact",
    "TorchOptions",
    "emit",
    "lazy_module",
    "output_mismatch",
    "read_back",
    "requantization_mismatch",
    "to_module",
]
