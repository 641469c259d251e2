"""Files of data and of weights that hold something else than arrays and dense tensors: refused by name."""

from __future__ import annotations

import json
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxpress.compiler import UserError, capture
from fxpress.compiler.data import Column, read_samples
from fxpress.compiler.loading import check_weights, load_source, load_weights, read_tensors
from fxpress.compiler.lock import file_digest
from fxpress.ir import DType, TensorType, run
from fxpress.specs import FileSource, ModuleSource, Transform

COLUMN = Column("x", TensorType((1, 3), DType.F32))
WHOLE = np.arange(6).reshape(2, 3)


@pytest.mark.parametrize("dtype", ["longdouble", ">f4", ">i2", "float16", "uint64", "bool"])
def test_numbers_of_every_kind_are_read(tmp_path: Path, dtype: str) -> None:
    np.savez(tmp_path / "x.npz", x=WHOLE.astype(dtype))
    read = read_samples(tmp_path / "x.npz", [COLUMN], labels=None, limit=None)
    assert read.inputs[0].tolist() == WHOLE.astype(dtype).astype(float).tolist()


def _member(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x", b"hello")


def _damaged(path: Path) -> None:
    np.savez_compressed(path, x=np.zeros((2, 3)))
    content = bytearray(path.read_bytes())
    content[60:100] = b"\x5a" * 40
    path.write_bytes(bytes(content))


DATA: dict[str, tuple[Callable[[Path], object], str]] = {
    "npy": (lambda p: np.save(p.open("wb"), WHOLE), "a single array, as written by np.save.*D101"),
    "no array": (_member, "member 'x' is a file in the archive, but not an array.*D101"),
    "damaged": (_damaged, "not a readable npz file.*D101"),
    "objects": (lambda p: np.savez(p, x=np.array([{}], dtype=object)), "Object arrays.*D101"),
    "structured": (lambda p: np.savez(p, x=np.zeros((2, 3), "i4,f4")), "numbers are needed.*D103"),
    "complex": (lambda p: np.savez(p, x=np.zeros((2, 3), complex)), "numbers are needed.*D103"),
    "dates": (lambda p: np.savez(p, x=np.zeros((2, 3), "M8[s]")), "numbers are needed.*D103"),
    "directory": (lambda p: p.mkdir(), "is a directory, not a file.*D100"),
}


@pytest.mark.parametrize("name", DATA)
def test_a_file_that_holds_no_arrays_of_numbers_is_refused(tmp_path: Path, name: str) -> None:
    make, words = DATA[name]
    make(tmp_path / "x.npz")
    with pytest.raises(UserError, match=words):
        read_samples(tmp_path / "x.npz", [COLUMN], labels=None, limit=None)


@pytest.mark.parametrize(
    ("dtype", "array"), [(DType.I64, WHOLE + 0.5), (DType.U8, WHOLE - 1), (DType.U8, WHOLE * 99)]
)
def test_numbers_that_an_integer_input_cannot_hold_are_refused(
    tmp_path: Path, dtype: DType, array: np.ndarray
) -> None:
    np.savez(tmp_path / "x.npz", x=array)
    with pytest.raises(UserError, match=r"cannot represent.*D103"):
        read_samples(tmp_path / "x.npz", [Column("x", TensorType((1, 3), dtype))], labels=None, limit=None)


def test_an_integer_input_has_no_scale(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=WHOLE)
    column = Column("x", TensorType((1, 3), DType.U8), Transform(scale=2.0))
    with pytest.raises(UserError, match=r"has no scale or offset.*D103"):
        read_samples(tmp_path / "x.npz", [column], labels=None, limit=None)


TENSORS = {
    "sparse": (lambda: torch.eye(3).to_sparse(), r"w is stored as torch\.sparse_coo"),
    "compressed": (lambda: torch.eye(3).to_sparse_csr(), r"w is stored as torch\.sparse_csr"),
    "quantized": (lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8), "w is quantized"),
    "meta": (lambda: torch.empty(3, device="meta"), "w is on the meta device"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", TENSORS)
def test_tensors_that_are_not_dense_are_refused(tmp_path: Path, name: str) -> None:
    make, words = TENSORS[name]
    torch.save({"w": make()}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=rf"{words}.*M11[16]"):
        read_tensors(tmp_path / "w.pt")


def test_names_that_are_no_text_and_complex_weights_are_refused(tmp_path: Path) -> None:
    torch.save({0: torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"mapping of names to tensors.*M111"):
        read_tensors(tmp_path / "w.pt")
    torch.save({"weight": torch.ones(2, 3, dtype=torch.complex64), "bias": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"weight is complex.*M114"):
        load_weights(torch.nn.Linear(3, 2), tmp_path / "w.pt")


def test_a_model_with_lazy_parameters_is_refused(tmp_path: Path) -> None:
    model = torch.nn.LazyLinear(2)
    with pytest.raises(UserError, match=r"weight is a lazy parameter.*M117"):
        check_weights(model, "net.py:Net")
    torch.save({"weight": torch.ones(2, 3), "bias": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(UserError, match=r"weight is a lazy parameter.*M117"):
        load_weights(torch.nn.LazyLinear(2), tmp_path / "w.pt")


MASK = torch.full((3, 3), -torch.inf).triu(1)


class Masked(nn.Module):
    """A module with a mask of its own, as a buffer or as a parameter."""

    def __init__(self, mask: Tensor, *, as_parameter: bool = False) -> None:
        super().__init__()
        if as_parameter:
            self.mask = nn.Parameter(mask)
        else:
            self.register_buffer("mask", mask)

    def forward(self, x: Tensor) -> Tensor:
        return torch.softmax(x + self.mask, -1)


@pytest.mark.parametrize(
    "model",
    [Masked(MASK), Masked(MASK - torch.arange(3.0)), Masked(MASK, as_parameter=True)],
    ids=["buffer", "buffer with slopes", "parameter"],
)
def test_a_mask_may_hold_minus_infinity(model: nn.Module) -> None:
    assert check_weights(model, "net.py:Net") == []
    assert run(capture(model, (torch.ones(1, 3, 3),)).graph, [torch.ones(1, 3, 3)])[0][0, 0, 0] == 1


@pytest.mark.parametrize(
    "model",
    [Masked(-MASK), Masked(MASK * 0), Masked(MASK - 1, as_parameter=True)],
    ids=["plus infinity", "NaN", "weights"],
)
def test_other_numbers_that_are_not_finite_are_refused(model: nn.Module) -> None:
    with pytest.raises(UserError, match=r"mask contains NaN or infinity.*M121"):
        check_weights(model, "net.py:Net")


CLASS = "from torch import nn\n\n\nclass Net(nn.Linear):\n    def __init__(self, width: int, *, bias=True):\n"
BODY = CLASS + "        super().__init__(3, width, bias)\n"


@pytest.mark.parametrize(
    ("source", "arguments", "words"),
    [
        ("class Net(:", {}, r"SyntaxError: .*; see .*net\.py:1 \[M101\]"),
        ("import math\nimport no_such_module", {}, r"ModuleNotFoundError.*; see .*net\.py:2 \[M101\]"),
        ("import json\njson.loads('x')", {}, r"JSONDecodeError.*; see .*net\.py:2 \[M101\]"),
        ("import broken", {}, r"SyntaxError.*; see .*broken\.py:2 \[M101\]"),
        (
            BODY,
            {},
            r"missing 1 .*'width'; it takes \(width, \*, bias=True\): give its arguments in `model.args`",
        ),
        (BODY, {"widht": 3}, r"argument 'widht'; did you mean \"width\"\? it takes \(width, \*, bias=True\)"),
        (BODY, {"width": 3, "gain": 1}, r"argument 'gain'; it takes \(width, \*, bias=True\)"),
        (BODY, {"width": "3"}, r"TypeError: .*; see .*net\.py:6 \[M101\]"),
        ("Nett = Other = 3", {}, r"no attribute 'Net'; did you mean \"Nett\"\? \[M102\]"),
        ("Other = 3", {}, r"no attribute 'Net'; known here: Other \[M102\]"),
        (
            "def Net(): raise ValueError('no')",
            {},
            r"calling it raises ValueError: no; see .*net\.py:1 \[M101\]",
        ),
    ],
)
def test_a_source_that_fails_is_told_with_its_line_or_what_it_takes(
    tmp_path: Path, source: str, arguments: dict[str, object], words: str
) -> None:
    (tmp_path / "net.py").write_text(source)
    (tmp_path / "broken.py").write_text("x = 1\ny = (\n")
    with pytest.raises(UserError, match=words):
        load_source(FileSource(tmp_path / "net.py", "Net"), arguments, folder=tmp_path)


def test_a_source_may_define_dataclasses_with_annotations_as_text(tmp_path: Path) -> None:
    (tmp_path / "sizes.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from torch import nn\n\n\n"
        "@dataclass\nclass Sizes:\n    inputs: int = 3\n    outputs: int = 2\n\n\n"
        "def network():\n    return nn.Linear(Sizes().inputs, Sizes().outputs)\n"
    )
    assert load_source(FileSource(tmp_path / "sizes.py", "network"), {}, folder=tmp_path).out_features == 2
    assert "sizes" not in sys.modules


def test_a_class_of_torch_without_its_arguments_and_a_directory_as_source(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"it takes \(in_features, out_features, bias=True.*`--arg` of `fxpress"
    ):
        load_source(ModuleSource("torch.nn", "Linear"), {}, folder=tmp_path)
    (tmp_path / "net.py").mkdir()
    with pytest.raises(UserError, match=r"is a directory, not a file; check the path \[M100\]"):
        load_source(FileSource(tmp_path / "net.py", "Net"), {}, folder=tmp_path)


OWN = {"weight": torch.ones(2, 3), "bias": torch.ones(2)}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (
            {f"module.{n}": t for n, t in OWN.items()},
            r"begins with 'module\.', as DataParallel adds it.*removeprefix",
        ),
        (
            {f"_orig_mod.{n}": t for n, t in OWN.items()},
            r"begins with '_orig_mod\.', as torch\.compile adds it",
        ),
        (
            {f"net.fc.{n}": t for n, t in OWN.items()},
            r"begins with 'net\.fc\.'; the names of the model do not.*M113",
        ),
        ({"module.weight": OWN["weight"]}, r"begins with 'module\.'"),
        ({"module.weight": OWN["weight"], "other": OWN["bias"]}, r"keys module\.weight, other \(not.*M113"),
        (
            {"epoch": 3, "state_dict": OWN},
            r"no.* mapping of names to tensors; save the mapping under 'state_dict'",
        ),
        (
            {"model": OWN, "ema": OWN, "optimizer": {}},
            r"save the mapping under 'model' or 'ema': torch\.save.*\['model'\]",
        ),
        ({"epoch": 3}, r"mapping of names to tensors; save a state_dict \[M111\]"),
        ([OWN], r"mapping of names to tensors; save a state_dict \[M111\]"),
    ],
)
def test_a_checkpoint_of_another_form_is_told_with_what_to_do(
    tmp_path: Path, content: object, words: str
) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(UserError, match=f"(?s){words}"):
        load_weights(torch.nn.Linear(3, 2), tmp_path / "w.pt")


def test_weights_whose_names_lack_what_the_model_puts_before_them(tmp_path: Path) -> None:
    torch.save(OWN, tmp_path / "w.pt")
    model = torch.nn.ModuleDict({"net": torch.nn.Linear(3, 2)})
    with pytest.raises(
        UserError, match=r"no name begins with 'net\.', as all names of the model do; add it.*M112"
    ):
        load_weights(model, tmp_path / "w.pt")


def test_denormal_numbers_are_told_in_one_note_and_half_precision_has_none() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    assert check_weights(model, "net.py:Net") == []
    with torch.no_grad():
        model[0].weight[0, :2] = 1e-40
    assert check_weights(model, "net.py:Net") == ["0.weight holds 2 denormal numbers, which are kept"]
    with torch.no_grad():
        model[1].weight[0, 0] = model[1].bias[1] = 1e-40
    assert check_weights(model, "net.py:Net") == [
        "0.weight and 2 other tensors contain 4 denormal numbers, which are kept"
    ]
    half = nn.Linear(3, 2).half()
    with torch.no_grad():
        half.weight[0] = 1e-6
    assert check_weights(half, "net.py:Net") == []


def sharded(folder: Path, model: nn.Module) -> Path:
    """The weights of a model, each tensor in a file of its own, and their index file."""
    places = {name: f"{number}.safetensors" for number, name in enumerate(model.state_dict())}
    for name, tensor in model.state_dict().items():
        save_file({name: tensor}, folder / places[name])
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    return index


def test_shards_are_read_through_their_index_file(tmp_path: Path) -> None:
    given, made = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    load_weights(made, sharded(tmp_path, given))
    assert torch.equal(made.weight, given.weight) and torch.equal(made.bias, given.bias)


def test_the_digest_of_an_index_file_covers_its_shards(tmp_path: Path) -> None:
    index = sharded(tmp_path, torch.nn.Linear(3, 2))
    before = file_digest(index)
    save_file({"bias": torch.ones(2)}, tmp_path / "1.safetensors")
    assert file_digest(index) != before


def test_damaged_index_file_and_missing_shard_are_refused(tmp_path: Path) -> None:
    index = sharded(tmp_path, torch.nn.Linear(3, 2))
    (tmp_path / "1.safetensors").unlink()
    with pytest.raises(UserError, match="M111"):
        read_tensors(index)
    index.write_text("[]")
    with pytest.raises(UserError, match="has no weight_map of tensors to files"):
        read_tensors(index)
