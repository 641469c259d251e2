"""The kernel of packed products: the same bits on every instruction set, and the behaviour without a compiler."""

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import torch

from fxpress.backends import packed_linear
from fxpress.backends.packed_linear import pack_codes, pack_scales
from fxpress.backends.torch_module import prelude_library, prelude_weight_only
from fxpress.backends.torch_module.prelude_weight_only import (
    PackedWeight,
    RmsNorm,
    fake_quantize_per_token,
    joined_linear,
)
from fxpress.ir.ops.quantize import FakeQuantizePerToken

SOURCES = packed_linear.FOLDER
CHECK = Path(__file__).with_name("packed_linear_check.c")
ARM = "aarch64-linux-gnu-gcc"
BUILDS = {
    "native": (["gcc", "-march=native"], []),
    "avx2": (["gcc", "-mavx2", "-mfma", "-mf16c"], []),
    "plain": (["gcc"], []),
    "clang": (["clang", "-march=native"], []),
    "neon": ([ARM, "-march=armv8.2-a+dotprod", "-static"], ["qemu-aarch64", "-cpu", "max"]),
    "sanitized": (["gcc", "-march=native", "-O1", "-fsanitize=address,undefined"], []),
}


@cache
def outcome(build: str, folder: Path) -> str:
    command, emulator = BUILDS[build]
    for program in (command[0], *emulator[:1]):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if build == "avx2" and not torch.backends.cpu.get_cpu_capability().startswith("AVX"):
        pytest.skip("this processor has no AVX2")
    program = folder / build
    flags = ["-O3", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", f"-I{SOURCES}"]
    options = [command[0], *flags, *command[1:]]
    subprocess.run([*options, "-o", program, CHECK, "-lm"], check=True)
    return subprocess.run([*emulator, program], check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("packed_linear")


@pytest.mark.parametrize("build", BUILDS)
def test_every_instruction_set_gives_the_bits_of_the_definition(build: str, folder: Path) -> None:
    name, _, cases, _, differing, *_ = outcome(build, folder).split()
    assert (int(cases), int(differing)) == (540, 0)
    expected = {"avx2": "avx2", "plain": "c", "neon": "neon-dotprod"}
    assert name == expected.get(build, name)


@pytest.mark.parametrize("build", ["avx2", "plain", "clang", "neon"])
def test_instruction_sets_give_the_same_bits(build: str, folder: Path) -> None:
    assert outcome(build, folder).split()[-1] == outcome("native", folder).split()[-1]


def packed(rows: int, columns: int, *, bits: int, group_size: int) -> PackedWeight:
    generator = torch.Generator().manual_seed(bits)
    half = 1 << (bits - 1)
    levels = torch.randint(-half, half, (rows, columns), generator=generator)
    scales = torch.randn(rows * columns // group_size, generator=generator)
    weight = PackedWeight(rows, columns, bits=bits, group_size=group_size)
    weight.codes.copy_(pack_codes(levels, bits, group_size))
    weight.scale.copy_(pack_scales(scales, rows))
    return weight


@pytest.fixture(autouse=True)
def beside_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prelude finds the kernel next to itself, as in an emitted module."""
    monkeypatch.setattr(prelude_library, "__file__", str(SOURCES / "model.py"))


@pytest.fixture
def without_compiler(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("CC", "no-such-compiler")
    prelude_weight_only.packed_linear_library.cache_clear()
    with pytest.warns(UserWarning, match="packed_linear.c was not compiled.*no-such-compiler"):
        assert prelude_weight_only.packed_linear_library() is None
    yield
    prelude_weight_only.packed_linear_library.cache_clear()


@pytest.mark.parametrize(
    ("bits", "group_size", "limit"), [(8, 64, 1e-6), (4, 32, 2e-2), (3, 32, 1e-6), (8, 32, 1e-6)]
)
@pytest.mark.parametrize("tokens", [1, 40])
def test_torch_computes_the_product_without_a_compiler(
    bits: int, group_size: int, limit: float, tokens: int, without_compiler: None
) -> None:
    """Exactly, but for torch's int4 kernel, which computes in bfloat16."""
    weight = packed(48, 64, bits=bits, group_size=group_size)
    x = torch.randn(tokens, 64, generator=torch.Generator().manual_seed(0))
    expected = fake_quantize_per_token(x) @ weight.reals().T
    with torch.no_grad():
        found = weight.linear(x, rounded=True)
        exact = weight.linear(x)
    assert float((found - expected).norm() / expected.norm()) < limit
    torch.testing.assert_close(exact, x @ weight.reals().T)


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (4, 32), (3, 16)])
@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize("lead", [(1,), (2, 9), (3, 0), ()])
def test_joined_products_have_the_bits_of_separate_ones(
    bits: int, group_size: int, rounded: bool, lead: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = [packed(rows, 64, bits=bits, group_size=group_size) for rows in (37, 16, 5)]
    weights[1].scale = weights[1].scale.to(torch.bfloat16)
    biases = [torch.randn(37, generator=generator), None, torch.randn(5, generator=generator)]
    x = torch.randn(*lead, 64, generator=generator)
    with torch.no_grad():
        for given in (biases, ()):
            found = joined_linear(x, weights, given, rounded=rounded)
            for y, weight, bias in zip(found, weights, given or [None] * 3, strict=True):
                assert torch.equal(y, weight.linear(x, bias, rounded=rounded))
                assert y.shape == (*lead, weight.shape[0])


@pytest.mark.parametrize(("bits", "group_size"), [(8, 64), (4, 32), (3, 32)])
def test_joined_products_without_a_compiler(bits: int, group_size: int, without_compiler: None) -> None:
    weights, x = (
        [packed(rows, 64, bits=bits, group_size=group_size) for rows in (48, 16)],
        torch.randn(2, 3, 64),
    )
    with torch.no_grad():
        for y, weight in zip(joined_linear(x, weights, rounded=True), weights, strict=True):
            torch.testing.assert_close(y, weight.linear(x, rounded=True), rtol=1e-5, atol=1e-4)


def test_a_weight_is_multiplied_alone_and_with_others() -> None:
    first, second = (packed(16, 64, bits=4, group_size=32) for _ in range(2))
    x = torch.randn(1, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        alone = first.linear(x)
        assert torch.equal(joined_linear(x, [first, second])[1], second.linear(x))
        assert torch.equal(first.linear(x), alone)
        second.scale.mul_(2)
        assert torch.equal(joined_linear(x, [first, second])[1], 2 * alone)
        second.scale = 2 * second.scale
        assert torch.equal(joined_linear(x, [first, second])[1], 4 * alone)


def test_threads_change_no_bit() -> None:
    weight, x = packed(512, 512, bits=4, group_size=32), torch.randn(8, 512)
    threads = torch.get_num_threads()
    with torch.no_grad():
        try:
            torch.set_num_threads(1)
            one = weight.linear(x, rounded=True)
            torch.set_num_threads(2)
            assert torch.equal(weight.linear(x, rounded=True), one)
        finally:
            torch.set_num_threads(threads)


def test_values_halfway_between_two_codes_are_rounded_as_the_graph_does() -> None:
    second = PackedWeight(1, 2, bits=8, group_size=2)
    second.codes.copy_(pack_codes(torch.tensor([[0, 1]]), 8, 2))
    second.scale.copy_(pack_scales(torch.ones(1), 1))
    largest = torch.rand(20_000, 1) + 0.1
    x = torch.cat([largest, largest / 254 * (2 * torch.randint(0, 127, largest.shape) + 1)], 1)
    operator = FakeQuantizePerToken()
    with torch.no_grad():
        y = second.linear(x, rounded=True)
    assert torch.equal(y, operator.reference(x)[:, 1:])
    assert torch.equal(y, fake_quantize_per_token(x)[:, 1:])


@pytest.mark.parametrize("rounded", [False, True])
def test_gradients_and_exports_take_torch_operators(rounded: bool) -> None:
    weight = packed(16, 64, bits=4, group_size=32)
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    weight.linear(x, rounded=rounded).sum().backward()
    assert x.grad is not None

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.weight.linear(x, rounded=rounded)

    exported = torch.export.export(Net().eval(), (x.detach(),)).module()
    with torch.no_grad():
        torch.testing.assert_close(exported(x), weight.linear(x, rounded=rounded), rtol=1e-5, atol=1e-4)


def test_exports_keep_a_dynamic_number_of_tokens() -> None:
    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = packed(64, 64, bits=4, group_size=32)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.weight.linear(self.weight.rows(ids), rounded=True)

    net, shapes = Net().eval(), ({1: torch.export.Dim("tokens")},)
    exported = torch.export.export(net, (torch.arange(6)[None],), dynamic_shapes=shapes).module()
    ids = torch.arange(20, 33)[None]
    with torch.no_grad():
        torch.testing.assert_close(exported(ids), net(ids), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_element_types_are_converted(dtype: torch.dtype) -> None:
    weight, x = packed(16, 64, bits=4, group_size=32), torch.randn(2, 3, 64).to(dtype)
    with torch.no_grad():
        y = weight.linear(x, torch.ones(16, dtype=dtype))
        assert y.dtype is dtype
        expected = (x.double() @ weight.reals().double().T + 1).to(dtype)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_defaults_of_torch_change_neither_results_nor_memory(dtype: torch.dtype, device: str) -> None:
    weight, x, rows = packed(32, 64, bits=4, group_size=32), torch.randn(3, 64), torch.tensor([3, 31])
    expected = weight.linear(x, rounded=True), weight.rows(rows)
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(dtype)
        with torch.device(device):
            found = weight.linear(x, rounded=True), weight.rows(rows)
    finally:
        torch.set_default_dtype(before)
    assert all(map(torch.equal, found, expected))


def test_inputs_of_another_width_and_rows_that_are_not_there_are_refused() -> None:
    weight = packed(17, 64, bits=4, group_size=32)
    for columns in (1, 32, 128):
        with pytest.raises(RuntimeError, match=f"an input of {columns} columns for a weight of 64"):
            weight.linear(torch.zeros(2, columns))
    for index in (17, 31, -1):
        with pytest.raises(IndexError, match="outside of the 17 rows"):
            weight.rows(torch.tensor([0, index]))
    assert weight.rows(torch.zeros(2, 0, dtype=torch.int64)).shape == (2, 0, 64)
    assert torch.equal(weight.rows(torch.tensor([3], dtype=torch.uint8)), weight.reals()[3:4])


@pytest.mark.parametrize("shape", [(1, 1, 768), (2, 5, 33), (3, 4, 2, 8), (0, 16)])
@pytest.mark.parametrize("eps", [None, 1e-5])
def test_the_kernel_normalizes_as_torch_does(shape: tuple[int, ...], eps: float | None) -> None:
    """Up to the rounding of a sum of squares, a root and two products: 8 steps of float32."""
    generator = torch.Generator().manual_seed(0)
    norm = RmsNorm(shape[-2:] if len(shape) == 4 else shape[-1:], eps=eps)
    x = torch.randn(shape, generator=generator)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(norm.weight.shape, generator=generator))
        wide = torch.nn.functional.rms_norm(
            x.double(), norm.weight.shape, norm.weight.double(), norm.eps or 2.0**-23
        )
        bound = 8 * 2.0**-24 * wide.abs()
        assert bool(((norm(x) - wide).abs() <= bound).all())
        turned = x.transpose(0, -1).contiguous().transpose(0, -1)
        assert torch.equal(norm(turned), norm(x))


def test_norms_are_torchs_where_the_kernel_does_not_fit(without_compiler: None) -> None:
    norm, x = RmsNorm([16]), torch.randn(3, 16)
    with torch.no_grad():
        assert torch.equal(norm(x), torch.nn.functional.rms_norm(x, [16], norm.weight))


def test_norms_have_gradients_and_other_element_types() -> None:
    norm, x = RmsNorm([16]), torch.randn(3, 16, requires_grad=True)
    norm(x).square().sum().backward()
    assert x.grad is not None and norm.weight.grad is not None
    with torch.no_grad():
        half = RmsNorm([16]).to(torch.bfloat16)
        y = half(x.to(torch.bfloat16))
        assert torch.equal(y, torch.nn.functional.rms_norm(x.to(torch.bfloat16), [16], half.weight))
        with pytest.raises(RuntimeError, match="normalized_shape"):
            norm(torch.zeros(3, 8))


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_rows_have_the_bits_of_the_whole_weight(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    weight, indices = packed(37, 48, bits=bits, group_size=16), torch.tensor([[36, 0], [5, 5]])
    assert torch.equal(weight.rows(indices), weight.reals()[indices])
    monkeypatch.setattr(prelude_weight_only, "packed_linear_library", lambda: None)
    assert torch.equal(weight.rows(indices), weight.reals()[indices])
    with pytest.raises(IndexError, match="outside of the 37 rows"):
        weight.rows(indices + 1)


def test_other_layouts_of_its_tensors_change_nothing() -> None:
    weight, x = packed(48, 64, bits=4, group_size=32), torch.randn(3, 64)
    with torch.no_grad():
        expected = weight.linear(x, rounded=True)
        weight.scale = weight.scale.transpose(0, 1).contiguous().transpose(0, 1)
        assert torch.equal(weight.linear(x, rounded=True), expected)
        weight.to(memory_format=torch.channels_last)
        assert torch.equal(weight.linear(x, rounded=True), expected)
        traced = torch.jit.trace(lambda rows: weight.linear(rows, rounded=True), x)
        torch.testing.assert_close(traced(x), expected, rtol=1e-5, atol=1e-4)


def test_a_changed_weight_is_packed_anew_without_a_compiler(without_compiler: None) -> None:
    for bits, group_size in ((8, 64), (4, 32)):
        weight, x = packed(48, 64, bits=bits, group_size=group_size), torch.randn(3, 64)
        with torch.no_grad():
            before = weight.linear(x, rounded=True)
            weight.scale.mul_(2)
            torch.testing.assert_close(weight.linear(x, rounded=True), 2 * before)


def test_a_damaged_library_is_compiled_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    library = prelude_weight_only.packed_linear_library
    library.cache_clear()
    assert library() is not None
    (stored,) = (tmp_path / "fxpress").iterdir()
    stored.unlink()
    stored.write_bytes(b"no library")
    library.cache_clear()
    assert library() is not None
    assert [path.name for path in (tmp_path / "fxpress").iterdir()] == [stored.name]
    library.cache_clear()


@pytest.mark.parametrize("compiler", ["gcc '", "no-such-compiler", "false"])
def test_a_compiler_that_does_not_work_leaves_a_warning_and_no_file(
    compiler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", compiler)
    prelude_weight_only.packed_linear_library.cache_clear()
    with pytest.warns(UserWarning, match="was not compiled"):
        assert prelude_weight_only.packed_linear_library() is None
    prelude_weight_only.packed_linear_library.cache_clear()
    assert not list(tmp_path.rglob("*.so"))
