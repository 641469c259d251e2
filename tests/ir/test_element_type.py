"""Element types and the bytes of elements."""

import pytest
import torch

from fxpress.ir import DType, ShapeError, element_bytes


def test_element_types_of_torch_are_known_or_refused() -> None:
    assert all(DType.of(dtype.torch) is dtype for dtype in DType)
    with pytest.raises(ShapeError, match=r"torch\.complex32 is not supported"):
        DType.of(torch.complex32)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.arange(6.0).reshape(2, 3).T,
        torch.ones(3).as_strided((1,), (0,)),
        torch.ones(1).expand(4),
        torch.tensor(2.5),
        torch.ones(0, 3),
        torch.ones(3, dtype=torch.bfloat16),
        torch.tensor([True, False]),
    ],
)
def test_elements_are_those_of_a_plain_copy(tensor: torch.Tensor) -> None:
    plain = torch.tensor(tensor.tolist(), dtype=tensor.dtype)
    assert element_bytes(tensor) == element_bytes(plain)
    assert len(element_bytes(tensor)) == tensor.numel() * tensor.element_size()
