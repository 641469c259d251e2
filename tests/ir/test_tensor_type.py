"""Types: refusals, and their bytes."""

import pytest

from fxpress.ir import DType, Encoding, ShapeError, TensorType

MISFITS = [
    ((2, 3), DType.I8, Encoding((1.0, 1.0), axis=2), "axis 2 outside a tensor of rank 2"),
    ((2, 3), DType.I8, Encoding((1.0, 1.0), axis=1), "2 scales for axis 1 of"),
    (
        (2, 3),
        DType.I8,
        Encoding((1.0, 1.0), axis=0, group_size=2),
        "groups of 2 do not divide 3 elements",
    ),
    ((2, 3), DType.I16, Encoding((1.0,)), "8-bit values are stored in i8, not in i16"),
    ((2, -3), DType.F32, None, "negative size"),
]


@pytest.mark.parametrize(("shape", "dtype", "grid", "message"), MISFITS)
def test_type_that_its_quantization_does_not_fit_is_refused(
    shape: tuple[int, ...], dtype: DType, grid: Encoding | None, message: str
) -> None:
    with pytest.raises(ShapeError, match=message):
        TensorType(shape, dtype, grid)


def test_storage_below_eight_bits_shares_bytes() -> None:
    assert TensorType((3, 3)).storage_bytes == 36
    assert TensorType((3, 3)).quantized(Encoding((1.0,), bits=4)).storage_bytes == 5
    assert TensorType((3, 3)).quantized(Encoding((1.0,), bits=2)).storage_bytes == 3
    assert TensorType((3, 3)).quantized(Encoding((1.0,), bits=16)).storage_bytes == 18
