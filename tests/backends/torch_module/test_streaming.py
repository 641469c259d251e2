"""Models larger than memory: one tensor at a time from shards through weight_only to the emitted file."""

import weakref
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from fxpress.backends.torch_module import emit
from fxpress.ir import Builder, DType, Graph, LazyTensor, Params, TensorType, dump, rewrite, verify
from fxpress.ir.ops.embedding import Embedding
from fxpress.ir.ops.linear import Linear
from fxpress.ir.tensor_files import open_tensors
from fxpress.passes.base import Context
from fxpress.passes.weight_only.weight_storage import weight_only
from fxpress.specs.options import WeightOnlyOptions

WIDTH, LAYERS = 64, 6


class Reader:
    """Counts the tensors that were read from lazy ones, and how many of them were in memory at once."""

    def __init__(self) -> None:
        self.reads, self.alive, self.most = 0, 0, 0

    def watched(self, params: Params) -> Params:
        return Params({name: self._watched(params, name) for name in params})

    def _watched(self, params: Params, name: str) -> LazyTensor:
        entry = params.entry(name)
        return LazyTensor(tuple(entry.shape), entry.dtype, lambda: self._read(params, name))

    def _read(self, params: Params, name: str) -> Tensor:
        tensor = params[name].clone()
        self.reads, self.alive = self.reads + 1, self.alive + 1
        self.most = max(self.most, self.alive)
        weakref.finalize(tensor, self._freed)
        return tensor

    def _freed(self) -> None:
        self.alive -= 1


def shards(folder: Path, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    save_file({"table": torch.randn(32, WIDTH, generator=generator).to(dtype)}, folder / "0.safetensors")
    for index in range(LAYERS):
        weight = torch.randn(WIDTH, WIDTH, generator=generator).to(dtype)
        bias = torch.randn(WIDTH, generator=generator).to(dtype)
        tensors = {f"layers.{index}.weight": weight, f"layers.{index}.bias": bias}
        save_file(tensors, folder / f"{index + 1}.safetensors")


def network(params: Params) -> Graph:
    """A table, layers, and the table again as the weight of the last one."""
    builder = Builder()
    table = builder.constant("table", params.entry("table"))
    x = builder.add(Embedding(), builder.input("tokens", TensorType((1, 3), DType.I64)), table)
    for index in range(LAYERS):
        names = (f"layers.{index}.weight", f"layers.{index}.bias")
        x = builder.add(Linear(), x, *(builder.constant(name, params.entry(name)) for name in names))
    return builder.build([builder.add(Linear(), x, table)])


def compress(graph: Graph) -> Graph:
    options = WeightOnlyOptions.model_validate({"weights": "int4", "group_size": 16, "observer": "minmax"})
    return weight_only(graph, options, Context()).graph


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sharded_model_is_compressed_and_written_one_tensor_at_a_time(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    (source := tmp_path / "model").mkdir()
    shards(source, dtype)
    reader = Reader()
    written = compress(network(reader.watched(open_tensors(source))))
    emit(written).save(tmp_path)
    assert reader.most == 1
    assert reader.reads <= 3 * (LAYERS + 1) + LAYERS  # checked, measured, encoded; biases only written

    loaded = Params(load_file(source / "0.safetensors"))
    for index in range(LAYERS):
        loaded = loaded | load_file(source / f"{index + 1}.safetensors")
    assert (tmp_path / "model.safetensors").read_bytes() == emit(compress(network(loaded))).files()[
        "model.safetensors"
    ]


def test_graphs_are_built_verified_rewritten_and_dumped_without_a_read(tmp_path: Path) -> None:
    shards(tmp_path, torch.float32)
    reader = Reader()
    graph = verify(network(reader.watched(open_tensors(tmp_path))))
    again = rewrite(graph, lambda builder, node, operands: None)
    assert again == graph and dump(again) == dump(graph)
    changed = graph.with_params({"table": torch.zeros(32, WIDTH)})
    assert not changed.tensor(changed.constants[0]).any()
    emit(changed)
    assert reader.reads == 0


def test_lazy_tensor_that_is_not_what_it_said_is_refused() -> None:
    params = Params({"w": LazyTensor((2,), torch.float32, lambda: torch.zeros(3))})
    with pytest.raises(Exception, match=r"a lazy tensor of \(2,\) torch.float32 is read as \(3,\)"):
        params["w"]


def test_digests_are_computed_once_and_kept_for_what_does_not_change() -> None:
    reader = Reader()
    params = reader.watched(Params({"a": torch.ones(2), "b": torch.ones(2), "c": torch.ones(2, 1)}))
    assert params.digest("a") == params.digest("a") == params.digest("b") != params.digest("c")
    assert reader.reads == 3
    changed = params | {"a": torch.zeros(2)}
    assert changed.digest("b") == params.digest("b") and reader.reads == 3
    assert changed.digest("a") != params.digest("a")
