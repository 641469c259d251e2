"""The torch forms of random graphs: the bits of `run`, and one step from `run_integer` at each requantization."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fxpress.backends.torch_module import Form, requantization_mismatch, to_module
from fxpress.ir import DType, Graph, TensorType, run
from fxpress.ir.testing import GROWS, Example, assert_exact, examples, graphs, inputs, quantized_graphs

# torch chooses other kernels where a tensor has a gradient, so constants that are not a layer's are buffers here


def outputs_of(module: torch.nn.Module, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    with torch.no_grad():
        result = module(*tensors)
    return [result] if isinstance(result, torch.Tensor) else list(result)


@pytest.mark.parametrize("dtype", (DType.F32, DType.F64, DType.F16))
def test_float_modules_compute_the_bits_of_run(dtype: DType) -> None:
    @settings(max_examples=15)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        graph = data.draw(graphs(dtype=dtype))
        tensors = data.draw(inputs(graph))
        with torch.no_grad():
            expected = run(graph, tensors)
        assert_exact(outputs_of(to_module(graph, buffers=graph.params), tensors), expected)

    holds()


TYPES = [TensorType(shape) for shape in ((1, 2, 6), (2, 4, 5), (2, 3, 5, 4), (1, 4, 6, 6), (2, 6), (4,))]
CONVERSIONS = {"quantize", "dequantize", "requantize", "offset_binary"}


@pytest.mark.parametrize("name", sorted(GROWS.keys() - CONVERSIONS))
def test_every_operator_computes_its_bits_alone(name: str) -> None:
    @settings(max_examples=6)
    @given(examples(name))
    def holds(example: Example) -> None:
        with torch.no_grad():
            expected = run(example.graph, example.inputs)
        module = to_module(example.graph, buffers=example.graph.params)
        assert_exact(outputs_of(module, example.inputs), expected)

    holds()


@pytest.mark.parametrize("form", ("qdq", "eager", "native"))
def test_quantized_modules_are_one_step_from_the_integers_at_each_requantization(form: Form) -> None:
    @settings(max_examples=15)
    @given(st.data())
    def holds(data: st.DataObject) -> None:
        graph: Graph = data.draw(quantized_graphs(input_types=TYPES))
        for name, mismatch in requantization_mismatch(graph, [data.draw(inputs(graph))], form=form).items():
            assert mismatch.largest_step <= 1, name

    holds()
