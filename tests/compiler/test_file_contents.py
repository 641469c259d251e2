"""Files of a compilation: tensors are written and digested one at a time, as the safetensors file that they are."""

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from fxpress.compiler import compile_model
from fxpress.compiler.file_contents import Files
from fxpress.compiler.output import publish
from fxpress.ir import LazyTensor, Params


def tracked(count: int) -> tuple[Params, list[int]]:
    """Lazy tensors, and how many of them are alive, at the reading of each."""
    alive: list[int] = []
    held: set[int] = set()

    class Tracked(Tensor):
        def __del__(self) -> None:
            held.discard(id(self))

    def reader(index: int) -> Callable[[], Tensor]:
        def read() -> Tensor:
            tensor = torch.full((4, 8), float(index)).as_subclass(Tracked)
            held.add(id(tensor))
            alive.append(len(held))
            return tensor

        return read

    entries = {f"w{i}": LazyTensor((4, 8), torch.float32, reader(i)) for i in range(count)}
    return Params(entries), alive


def test_tensors_are_digested_and_written_one_at_a_time(tmp_path: Path) -> None:
    params, alive = tracked(6)
    files = Files({"spec.lock": b"{}", "w.safetensors": params})
    digest = files.digest("w.safetensors")
    publish(tmp_path / "out", files)
    assert len(alive) == 12 and max(alive) == 1
    written = (tmp_path / "out" / "w.safetensors").read_bytes()
    assert sha256(written).hexdigest() == digest and written == files["w.safetensors"]
    assert torch.equal(load_file(tmp_path / "out" / "w.safetensors")["w5"], torch.full((4, 8), 5.0))


def test_the_constants_of_a_graph_are_the_file_that_safetensors_writes() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.rand(8, 8)
    compiled = compile_model(net, inputs=x[:1], calibration=x, passes=["fuse", "quantize"])
    tensors = {name: t.contiguous() for name, t in sorted(compiled.graph.params.items())}
    assert compiled.files["graph.safetensors"] == save(tensors)
    assert compiled.torch is not None
    assert compiled.files["torch/model.safetensors"] == compiled.torch.files()["model.safetensors"]


def test_files_are_a_mapping_that_others_are_added_to() -> None:
    files = Files({"a": b"1", "b": b"2"}) | {"b": b"3"} | Files({"c": b"4"})
    assert dict(files) == {"a": b"1", "b": b"3", "c": b"4"} and "c" in files and len(files) == 3
