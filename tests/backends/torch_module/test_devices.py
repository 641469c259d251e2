"""Stored weights on other devices and in other element types: the kernels of torch that they use, and their results.

No test runs on a GPU: shapes and types of CUDA's kernels are those of torch's fake tensors.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from fxpress.backends.torch_module import emit
from fxpress.backends.torch_module.prelude_weight_only import (
    PackedWeight,
    fake_quantize_per_token,
    int4_product,
    int8_product,
    pack_int4,
    pack_int8,
    torch_kernel,
)
from fxpress.compiler import capture
from fxpress.passes import weight_only
from fxpress.specs.options import WeightOnlyOptions

CPU, CUDA, META = (torch.device(name) for name in ("cpu", "cuda", "meta"))
ROWS, COLUMNS = 64, 256


def integers(bits: int) -> Tensor:
    half, generator = 1 << (bits - 1), torch.Generator().manual_seed(bits)
    return torch.randint(-half, half, (ROWS, COLUMNS), generator=generator).to(torch.int8)


def scales(groups: int) -> Tensor:
    return torch.rand(ROWS, groups, generator=torch.Generator().manual_seed(0)) / 100


@pytest.mark.parametrize(
    ("device", "bits", "group_size", "rows", "capability", "kernel"),
    [
        (CPU, 8, 256, [7], None, "int8"),
        (CPU, 4, 32, [16, 48], None, "int4"),
        (CPU, 4, 32, [16, 8], None, None),
        (CPU, 4, 16, [16], None, None),
        (CPU, 8, 32, [16], None, None),
        (CPU, 3, 32, [16], None, None),
        (CUDA, 8, 256, [16, 8], (7, 5), "int8"),
        (CUDA, 8, 256, [16, 7], (7, 5), None),
        (CUDA, 8, 256, [16], (7, 0), None),
        (CUDA, 8, 32, [16], (9, 0), None),
        (CUDA, 4, 32, [8], (8, 0), "int4"),
        (CUDA, 4, 32, [8], (7, 5), None),
        (CUDA, 4, 64, [8, 12], (9, 0), None),
        (CUDA, 2, 32, [16], (9, 0), None),
        (META, 8, 256, [16], None, None),
    ],
)
def test_the_kernel_depends_on_device_and_form(
    device: torch.device,
    bits: int,
    group_size: int,
    rows: Sequence[int],
    capability: tuple[int, int] | None,
    kernel: str | None,
) -> None:
    weight = PackedWeight(rows[0], COLUMNS, bits=bits, group_size=group_size)
    assert torch_kernel(device, weight, rows, capability=capability) == kernel


def test_cuda_takes_int4_in_columns_of_whole_tiles() -> None:
    weight = PackedWeight(16, 192, bits=4, group_size=32)
    assert torch_kernel(CUDA, weight, [16], capability=(9, 0)) is None


@pytest.mark.parametrize("tokens", [1, 17, 40])
@pytest.mark.parametrize("kernel", ["FBGEMM", "oneDNN", "float"])
def test_int8_products_are_exact(tokens: int, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the rounding of three products of float32."""
    if kernel == "float":
        monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    elif not torch.cpu._is_vnni_supported():
        pytest.skip("the processor has no VNNI, where sums of FBGEMM and oneDNN are not exact")
    if kernel == "oneDNN":
        monkeypatch.setattr(torch.backends.quantized, "engine", "onednn")
    x = torch.randn(tokens, COLUMNS, generator=torch.Generator().manual_seed(1))
    x[0] = 0
    codes, sizes = pack_int8(integers(8), scales(1))
    assert isinstance(codes, Tensor) is (kernel != "FBGEMM")
    found = int8_product(x, codes, sizes)
    step = x.abs().amax(-1, keepdim=True) / 127
    rounded = (fake_quantize_per_token(x) / step.clamp_min(1e-30)).round()
    exact = (rounded.double() @ integers(8).double().T) * scales(1)[:, 0].double() * step.double()
    assert bool(((found - exact).abs() <= 4 * 2.0**-24 * exact.abs()).all())


@pytest.mark.parametrize("group_size", [32, 256])
def test_int4_products_are_those_of_the_reals(group_size: int) -> None:
    """Activations and scales are rounded to bfloat16, 8 bits of precision each."""
    x, given = (
        torch.randn(5, COLUMNS, generator=torch.Generator().manual_seed(1)),
        scales(COLUMNS // group_size),
    )
    found = int4_product(x, group_size, *pack_int4(integers(4), given))
    exact = x @ (integers(4) * given.repeat_interleave(group_size, 1)).T
    assert float((found - exact).norm() / exact.norm()) < 2.0**-7


@pytest.mark.parametrize("tokens", [1, 17])
def test_kernels_of_cuda_take_the_packed_tensors(tokens: int) -> None:
    """On meta and fake tensors, which check shapes and element types as CUDA's kernels do."""
    x = torch.empty(tokens, COLUMNS, device=META)
    y = int8_product(x, *pack_int8(integers(8).to(META), scales(1).to(META)))
    assert (y.shape, y.dtype) == ((tokens, ROWS), torch.float32)
    packed = pack_int4(integers(4).to(META), scales(8).to(META))
    with FakeTensorMode():
        codes, pairs = (torch.empty(t.shape, dtype=t.dtype, device=CUDA) for t in packed)
        y = int4_product(torch.empty(tokens, COLUMNS, device=CUDA), 32, codes, pairs)
    assert (y.shape, y.dtype, y.device.type) == ((tokens, ROWS), torch.float32, "cuda")


class Net(nn.Module):
    """A table, layers of one input, a norm, and the table again."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(48, 64), nn.RMSNorm(64)
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.norm(self.table(ids))
        return nn.functional.linear(self.a(x) * self.b(x), self.table.weight)


IDS = torch.tensor([[0, 47, 7, 7, 2]])


@cache
def compressed(**options: object) -> nn.Module:
    torch.manual_seed(0)
    graph = capture(Net().eval(), (IDS,)).graph
    return emit(weight_only(graph, WeightOnlyOptions.model_validate(options)).graph).build()


FORMS: list[dict[str, object]] = [
    {"weights": "int4"},
    {"weights": "int8", "group_size": None},
    {"weights": "nf4"},
]


@pytest.mark.parametrize("options", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_element_types_apply_to_what_is_computed(options: dict[str, object], dtype: torch.dtype) -> None:
    module = compressed(**options)
    half = copy.deepcopy(module).to(dtype)
    with torch.no_grad():
        expected, found = module(IDS), half(IDS)
    assert found.dtype is dtype
    assert (
        float((found - expected).norm() / expected.norm())
        < {torch.float16: 1e-2, torch.bfloat16: 4e-2}[dtype]
    )
    for part, other in zip(module.modules(), half.modules(), strict=True):
        if hasattr(part, "codes"):
            assert torch.equal(part.scale, other.scale) and part.scale.dtype is other.scale.dtype
            assert torch.equal(part.reals(), other.reals(torch.float32)) and other.rows(IDS).dtype is dtype
    with torch.no_grad():
        assert torch.equal(half.to(torch.float32)(IDS).norm().isfinite(), torch.tensor(True))


@pytest.mark.parametrize("options", FORMS)
def test_all_tensors_move_to_another_device(options: dict[str, object]) -> None:
    module = copy.deepcopy(compressed(**options)).to(META)
    assert {tensor.device for tensor in module.state_dict().values()} == {META}
    with torch.no_grad():
        y = module(IDS.to(META))
    assert y.device == META and y.shape == (1, 5, 48)
