"""Conversion of the published MLPerf Tiny files, on files of the same structure that are made here."""

import importlib
import io
import sys
import wave
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType

import flatbuffers
import h5py
import numpy as np
import pytest
import tflite
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

FOLDER = Path(__file__).parents[2] / "examples" / "mlperf_tiny"
INPUTS = {
    "ResNet8": (2, 3, 32, 32),
    "KeywordNet": (2, 1, 49, 10),
    "MobileNet": (2, 3, 96, 96),
    "Autoencoder": (2, 640),
    "WakeWordNet": (2, 40, 30, 1),
}
MODULES = ("models", "convert", "features", "obtain")


@pytest.fixture(scope="module")
def example() -> Iterator[dict[str, ModuleType]]:
    """The modules of the example, imported as its scripts import each other."""
    sys.path.insert(0, str(FOLDER))
    yield {name: importlib.import_module(name) for name in MODULES}
    sys.path.remove(str(FOLDER))
    for name in MODULES:
        del sys.modules[name]


def trained(example: dict[str, ModuleType], name: str) -> nn.Module:
    """A network with random weights and statistics."""
    torch.manual_seed(0)
    network: nn.Module = getattr(example["models"], name)()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def outputs(network: nn.Module, name: str) -> Tensor:
    with torch.no_grad():
        return network(torch.randn(INPUTS[name], generator=torch.Generator().manual_seed(1)))


def loaded(example: dict[str, ModuleType], name: str, path: Path) -> nn.Module:
    network: nn.Module = getattr(example["models"], name)()
    missing = network.load_state_dict(load_file(path), strict=False)
    assert not missing.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in missing.missing_keys)
    return network.eval()


def write_keras(network: nn.Module, path: Path) -> None:
    """The layers as Keras stores them: named by class and number, in an order that is not that of creation."""
    layers: list[tuple[str, dict[str, np.ndarray]]] = []
    counts: dict[str, int] = {}
    for module in network.modules():
        tensors = {k: t.detach().numpy() for k, t in module.named_parameters(recurse=False)}
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            kind, arrays = "batch_normalization", {"gamma": tensors["weight"], "beta": tensors["bias"]}
            arrays |= {
                "moving_mean": module.running_mean.numpy(),
                "moving_variance": module.running_var.numpy(),
            }
        elif isinstance(module, nn.Conv2d):
            kind = "conv2d" if module.groups == 1 else "depthwise_conv2d"
            order = (2, 3, 1, 0) if module.groups == 1 else (2, 3, 0, 1)
            key = "kernel" if module.groups == 1 else "depthwise_kernel"
            arrays = {key: tensors["weight"].transpose(order)}
        elif isinstance(module, nn.Linear):
            kind, arrays = "dense", {"kernel": tensors["weight"].T}
        else:
            continue
        if "bias" in tensors and kind != "batch_normalization":
            arrays["bias"] = tensors["bias"]
        number = counts[kind] = counts.get(kind, -1) + 1
        layers.append((f"{kind}_{number}" if number else kind, arrays))
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights")
        root.create_group("activation").attrs["weight_names"] = []
        root.attrs["layer_names"] = ["activation", *(name for name, _ in sorted(layers))]
        for name, arrays in layers:
            group = root.create_group(name)
            group.attrs["weight_names"] = [f"{name}/{key}:0" for key in arrays]
            for key, array in arrays.items():
                group[f"{name}/{key}:0"] = array


@pytest.mark.parametrize("name", INPUTS)
def test_a_keras_file_gives_the_network_whose_weights_it_holds(
    example: dict[str, ModuleType], name: str, tmp_path: Path
) -> None:
    network = trained(example, name)
    write_keras(network, tmp_path / "net.h5")
    example["convert"].main([name, str(tmp_path / "net.h5"), str(tmp_path / "net.safetensors")])
    converted = loaded(example, name, tmp_path / "net.safetensors")
    assert torch.equal(outputs(converted, name), outputs(network, name))


def test_a_file_of_another_network_is_refused(example: dict[str, ModuleType], tmp_path: Path) -> None:
    write_keras(trained(example, "KeywordNet"), tmp_path / "net.h5")
    with pytest.raises(ValueError, match=r"no layer with weights \(16, 3, 3, 3\), as conv1 needs"):
        example["convert"].convert(
            example["models"].ResNet8(), tmp_path / "net.h5", tmp_path / "net.safetensors"
        )


def test_layers_that_the_network_lacks_are_refused(example: dict[str, ModuleType]) -> None:
    with pytest.raises(ValueError, match="1 layers of the file are not in Linear"):
        example["convert"].state_dict(
            nn.Linear(2, 3), [{"weight": np.ones((3, 2), "f4")}, {"weight": np.ones(3)}]
        )


def folded(network: nn.Module) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Operator, weight in the layout of .tflite, and bias of each layer, with the batch norm after it folded in."""
    operators, found = tflite.BuiltinOperator, []
    for module in network.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            weight, bias = module.weight.detach().double(), module.bias.detach().double()
            found.append([module, weight, bias])
        elif isinstance(module, nn.BatchNorm2d):
            layer, weight, bias = found[-1]
            scale = module.weight.detach().double() / (module.running_var.double() + module.eps).sqrt()
            found[-1][1] = weight * scale.view(-1, *[1] * (weight.ndim - 1))
            found[-1][2] = (bias - module.running_mean) * scale + module.bias.detach()
    layers = []
    for layer, weight, bias in found:
        if isinstance(layer, nn.Linear):
            kind, order = operators.FULLY_CONNECTED, (0, 1)
        elif layer.groups == 1:
            kind, order = operators.CONV_2D, (0, 2, 3, 1)
        else:
            kind, order = operators.DEPTHWISE_CONV_2D, (1, 2, 3, 0)
        layers.append((kind, weight.permute(order).numpy(), bias.float().numpy()))
    return layers


class TfliteWriter:
    """A .tflite file under construction."""

    def __init__(self) -> None:
        self.builder = flatbuffers.Builder()
        self.buffers: list[int] = []
        self.tensors: list[int] = []

    def vector(self, start: Callable[[flatbuffers.Builder, int], int], items: list[int]) -> int:
        start(self.builder, len(items))
        for item in reversed(items):
            self.builder.PrependUOffsetTRelative(item)
        return self.builder.EndVector()

    def tensor(self, array: np.ndarray, kind: int, quantization: int | None = None) -> int:
        b = self.builder
        data = b.CreateByteVector(array.tobytes())
        tflite.BufferStart(b)
        tflite.BufferAddData(b, data)
        self.buffers.append(tflite.BufferEnd(b))
        shape = b.CreateNumpyVector(np.array(array.shape, np.int32))
        tflite.TensorStart(b)
        tflite.TensorAddShape(b, shape)
        tflite.TensorAddType(b, kind)
        tflite.TensorAddBuffer(b, len(self.buffers) - 1)
        if quantization is not None:
            tflite.TensorAddQuantization(b, quantization)
        self.tensors.append(tflite.TensorEnd(b))
        return len(self.tensors) - 1

    def int8(self, weight: np.ndarray, axis: int) -> int:
        """A weight with one scale for each index of `axis`."""
        b, others = self.builder, tuple(i for i in range(weight.ndim) if i != axis)
        scale = (np.abs(weight).max(others, keepdims=True) / 127).astype(np.float32)
        scales = b.CreateNumpyVector(scale.reshape(-1))
        zeros = b.CreateNumpyVector(np.zeros(scale.size, np.int64))
        tflite.QuantizationParametersStart(b)
        tflite.QuantizationParametersAddScale(b, scales)
        tflite.QuantizationParametersAddZeroPoint(b, zeros)
        tflite.QuantizationParametersAddQuantizedDimension(b, axis)
        quantization = tflite.QuantizationParametersEnd(b)
        return self.tensor((weight / scale).round().astype(np.int8), tflite.TensorType.INT8, quantization)

    def operator(self, code: int, inputs: list[int]) -> int:
        listed = self.builder.CreateNumpyVector(np.array(inputs, np.int32))
        tflite.OperatorStart(self.builder)
        tflite.OperatorAddOpcodeIndex(self.builder, code)
        tflite.OperatorAddInputs(self.builder, listed)
        return tflite.OperatorEnd(self.builder)

    def code(self, kind: int) -> int:
        tflite.OperatorCodeStart(self.builder)
        tflite.OperatorCodeAddDeprecatedBuiltinCode(self.builder, kind)
        return tflite.OperatorCodeEnd(self.builder)

    def finish(self, operators: list[int], codes: list[int]) -> bytes:
        b = self.builder
        tensors = self.vector(tflite.SubGraphStartTensorsVector, self.tensors)
        run = self.vector(tflite.SubGraphStartOperatorsVector, operators)
        tflite.SubGraphStart(b)
        tflite.SubGraphAddTensors(b, tensors)
        tflite.SubGraphAddOperators(b, run)
        graphs = self.vector(tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(b)])
        known = self.vector(tflite.ModelStartOperatorCodesVector, codes)
        contents = self.vector(tflite.ModelStartBuffersVector, self.buffers)
        tflite.ModelStart(b)
        tflite.ModelAddSubgraphs(b, graphs)
        tflite.ModelAddOperatorCodes(b, known)
        tflite.ModelAddBuffers(b, contents)
        b.Finish(tflite.ModelEnd(b), file_identifier=b"TFL3")
        return bytes(b.Output())


def write_tflite(layers: list[tuple[int, np.ndarray, np.ndarray]], path: Path) -> None:
    """A model whose weights are int8 with one scale for each output channel, and whose biases are floats."""
    writer, operators = TfliteWriter(), []
    codes = sorted({kind for kind, _, _ in layers})
    for kind, weight, bias in layers:
        stored = writer.int8(weight, 3 if kind == tflite.BuiltinOperator.DEPTHWISE_CONV_2D else 0)
        inputs = [0, stored, writer.tensor(bias, tflite.TensorType.FLOAT32)]
        operators.append(writer.operator(codes.index(kind), inputs))
    path.write_bytes(writer.finish(operators, [writer.code(kind) for kind in codes]))


def test_a_tflite_file_gives_a_network_with_identity_norms(
    example: dict[str, ModuleType], tmp_path: Path
) -> None:
    network = trained(example, "KeywordNet")
    write_tflite(folded(network), tmp_path / "net.tflite")
    example["convert"].main(["KeywordNet", str(tmp_path / "net.tflite"), str(tmp_path / "net.safetensors")])
    converted, expected = (
        loaded(example, "KeywordNet", tmp_path / "net.safetensors"),
        outputs(network, "KeywordNet"),
    )
    error = (outputs(converted, "KeywordNet") - expected).norm() / expected.norm()
    assert error < 0.02  # ten layers of 8-bit weights
    identity = converted.bn1(torch.arange(64.0).view(1, 64, 1, 1)).flatten()
    assert torch.allclose(identity, torch.arange(64.0), rtol=1e-6)


def test_cifar_records_become_images_of_disjoint_sets(example: dict[str, ModuleType]) -> None:
    generator = np.random.default_rng(0)

    def records(count: int) -> bytes:
        pixels = generator.integers(0, 256, (count, 3072), dtype=np.uint8)
        return np.concatenate([np.full((count, 1), 7, np.uint8), pixels], 1).tobytes()

    files = [(f"data_batch_{i}.bin", 1500) for i in range(1, 6)] + [
        ("test_batch.bin", 3000),
        ("readme.html", 0),
    ]
    made = example["obtain"].images((PurePosixPath("cifar", name), records(count)) for name, count in files)
    sizes = {name: {key: a.shape[0] for key, a in arrays.items()} for name, arrays in made.items()}
    assert sizes["ic01_eval_dev"] == {"x": 1000, "y": 1000}
    assert sizes["cifar10_lossless_calib"] == {"x": 500, "y": 500}
    assert sizes["cifar10_jpeg_subset"] == {"x_train": 7000, "y_train": 7000, "x_test": 2000, "y_test": 2000}
    x = made["ic01_eval_dev"]["x"]
    assert x.shape[1:] == (32, 32, 3) and x.dtype == np.uint8 and set(made["ic01_eval_dev"]["y"]) == {7}


def test_keywords_are_read_in_the_order_of_their_labels(example: dict[str, ModuleType]) -> None:
    members = [
        ("repo/datasets/kws01/b.bin", np.full(490, -3, np.int8).tobytes()),
        ("repo/datasets/kws01/y_labels.csv", b"a.bin, 12, 5\nb.bin, 12, 9\nmissing.bin, 12, 1\n"),
        ("repo/datasets/kws01/a.bin", np.full(490, 4, np.int8).tobytes()),
        ("repo/datasets/ic01/y_labels.csv", b"c.bin, 10, 1\n"),
    ]
    made = example["obtain"].keywords((PurePosixPath(path), content) for path, content in members)
    x, y = made["kws01_eval_dev"]["x"], made["kws01_eval_dev"]["y"]
    assert x.shape == (2, 49, 10) and x[:, 0, 0].tolist() == [4, -3] and y.tolist() == [5, 9]


def recording(samples: np.ndarray) -> bytes:
    with io.BytesIO() as buffer:
        with wave.open(buffer, "wb") as file:
            file.setparams((1, 2, 8000, 0, "NONE", ""))
            file.writeframes(samples.astype("<i2").tobytes())
        return buffer.getvalue()


def test_spoken_digits_are_split_by_take(example: dict[str, ModuleType]) -> None:
    takes = [(digit, take) for digit in (3, 8) for take in (0, 4, 7, 10)]
    sound = recording(1000 * np.sin(np.arange(4000) / 3))
    members = [(PurePosixPath("fsdd/recordings", f"{d}_george_{take}.wav"), sound) for d, take in takes]
    arrays = example["obtain"].spoken_digits(iter([*members, (PurePosixPath("fsdd/README.md"), b"")]))[
        "fsdd_mfcc"
    ]
    assert arrays["x_train"].shape == (2, 49, 10) and arrays["y_train"].tolist() == [3, 8]
    assert arrays["y_test"].tolist() == [3, 3, 8, 8]


def test_wake_words_take_classes_and_one_hot_labels(example: dict[str, ModuleType]) -> None:
    specs = np.zeros((3, 30, 1, 40), np.float32)
    for labels in (np.array([0, 2, 1]), np.eye(3)[[0, 2, 1]]):
        with io.BytesIO() as buffer:
            np.savez(buffer, specs=specs, labels=labels)
            made = example["obtain"].wake_words(buffer.getvalue())["sww01_calibration"]
        assert made["y"].tolist() == [0, 2, 1] and made["x"].shape == specs.shape


def test_silence_has_the_energy_of_the_floor_and_nothing_else(example: dict[str, ModuleType]) -> None:
    found = example["features"].mfcc(np.zeros(8000))
    assert found.shape == (49, 10)
    assert np.allclose(found[:, 0], np.sqrt(40) * np.log(1e-6)) and np.allclose(found[:, 1:], 0, atol=1e-5)


def test_a_tone_lies_in_the_mel_band_of_its_frequency(example: dict[str, ModuleType]) -> None:
    bands = example["features"].mel_bands()
    assert bands.shape == (129, 40) and bands.min() == 0 and bands.max() <= 1
    centres = [int(bands[bin].argmax()) for bin in (16, 32, 64)]  # 500, 1000, 2000 Hz
    assert centres == sorted(centres) and bands[32, centres[1]] > 0.5


def test_a_recording_of_another_rate_is_refused(example: dict[str, ModuleType]) -> None:
    content = bytearray(recording(np.zeros(10)))
    content[24:28] = (16000).to_bytes(4, "little")
    with pytest.raises(ValueError, match="8 kHz"):
        example["features"].read_wave(bytes(content))


def test_files_that_exist_are_not_downloaded_again(example: dict[str, ModuleType], tmp_path: Path) -> None:
    names = [*example["obtain"].NETWORKS]
    (tmp_path / "models").mkdir()
    for name in names:
        (tmp_path / "models" / f"{name}.safetensors").write_bytes(b"kept")
    example["obtain"].main(["models", "--folder", str(tmp_path)])
    assert {(tmp_path / "models" / f"{name}.safetensors").read_bytes() for name in names} == {b"kept"}
