"""Weights of the published MLPerf Tiny models, .h5 (Keras) or .tflite, as state dicts of the networks in `models.py`.

    python examples/mlperf_tiny/convert.py ResNet8 pretrainedResnet.h5 ic01_resnet8.safetensors

Layers are matched by the shape of their weights, in the order in which they were created. A .tflite file has its batch
norms folded into the layers before them: the norms of the network then become the identity. Its integer weights are
dequantized.
"""

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import h5py
import models
import numpy as np
import tflite
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

Array = NDArray[np.float32]
Layer = Mapping[str, Array]
"""Tensors of a layer, under the keys and in the layout of torch."""
BATCH_NORM = ("gamma", "beta", "moving_mean", "moving_variance")
BATCH_NORM_KEYS = ("weight", "bias", "running_mean", "running_var")


def main(arguments: list[str] | None = None) -> None:
    """Converts one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", help="class in models.py")
    parser.add_argument("source", type=Path, help=".h5 or .tflite file")
    parser.add_argument("target", type=Path, help=".safetensors file")
    options = parser.parse_args(arguments)
    convert(getattr(models, options.network)(), options.source, options.target)


def convert(network: nn.Module, source: Path, target: Path) -> None:
    """Writes the weights of a file as a state dict of `network`; ValueError if they are of another network."""
    layers = read_keras(source) if source.suffix == ".h5" else read_tflite(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(state_dict(network, layers), target)


def state_dict(network: nn.Module, layers: Iterable[Layer]) -> dict[str, Tensor]:
    """The layers as a state dict of `network`, without `num_batches_tracked`."""
    left = list(layers)
    is_folded = not any("running_mean" in layer for layer in left)
    found: dict[str, Tensor] = {}
    for path, module in network.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d):
            continue
        if is_folded and isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            layer = _identity(module)
        else:
            layer = _take(left, path, module)
        if module.bias is not None and "bias" not in layer:
            layer = {**layer, "bias": np.zeros(len(layer["weight"]), np.float32)}
        found |= {f"{path}.{key}": torch.from_numpy(np.array(a, order="C")) for key, a in layer.items()}
    if left:
        raise ValueError(f"{len(left)} layers of the file are not in {type(network).__name__}")
    return found


def read_keras(path: Path) -> list[Layer]:
    """Layers of a Keras .h5 file in the order of their creation."""
    with h5py.File(path) as file:
        root = file.get("model_weights", file)
        found: list[Layer] = []
        for name in sorted((_text(n) for n in root.attrs["layer_names"]), key=_creation):
            names = [_text(n) for n in root[name].attrs["weight_names"]]
            arrays = {
                n.rsplit("/", 1)[-1].split(":")[0]: np.asarray(root[name][n], np.float32) for n in names
            }
            found += _from_keras(arrays)
        return found


def read_tflite(path: Path) -> list[Layer]:
    """Convolutions and linear layers of a .tflite file, in the order of its operators."""
    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    graph, operators = model.Subgraphs(0), tflite.BuiltinOperator
    found: list[Layer] = []
    for index in range(graph.OperatorsLength()):
        operator = graph.Operators(index)
        code = model.OperatorCodes(operator.OpcodeIndex())
        kind = max(code.BuiltinCode(), code.DeprecatedBuiltinCode())
        if kind not in (operators.CONV_2D, operators.DEPTHWISE_CONV_2D, operators.FULLY_CONNECTED):
            continue
        weight = _tensor(model, graph.Tensors(operator.Inputs(1)))
        if kind == operators.CONV_2D:
            weight = weight.transpose(0, 3, 1, 2)
        elif kind == operators.DEPTHWISE_CONV_2D:
            weight = weight.transpose(3, 0, 1, 2)
        tensors = {"weight": weight}
        if operator.InputsLength() > 2 and operator.Inputs(2) >= 0:
            tensors["bias"] = _tensor(model, graph.Tensors(operator.Inputs(2)))
        found.append(tensors)
    return found


def _from_keras(arrays: Mapping[str, Array]) -> list[Layer]:
    """The tensors of one Keras layer: a separable convolution gives two layers, a layer without weights none."""
    bias = {"bias": arrays["bias"]} if "bias" in arrays else {}
    if "gamma" in arrays:
        return [{key: arrays[name] for key, name in zip(BATCH_NORM_KEYS, BATCH_NORM, strict=True)}]
    if "pointwise_kernel" in arrays:
        depthwise = {"weight": arrays["depthwise_kernel"].transpose(2, 3, 0, 1)}
        return [depthwise, {"weight": arrays["pointwise_kernel"].transpose(3, 2, 0, 1), **bias}]
    if "depthwise_kernel" in arrays:  # [kh, kw, channels, 1]
        return [{"weight": arrays["depthwise_kernel"].transpose(2, 3, 0, 1), **bias}]
    if "kernel" in arrays:
        kernel = arrays["kernel"]  # [kh, kw, in, out] or [in, out]
        return [{"weight": kernel.transpose(3, 2, 0, 1) if kernel.ndim == 4 else kernel.T, **bias}]
    return []


def _tensor(model: tflite.Model, tensor: tflite.Tensor) -> Array:
    """A constant tensor in float32; integers are dequantized."""
    types = {
        tflite.TensorType.FLOAT32: np.float32,
        tflite.TensorType.INT8: np.int8,
        tflite.TensorType.INT32: np.int32,
    }
    data = (
        model.Buffers(tensor.Buffer()).DataAsNumpy().view(types[tensor.Type()]).reshape(tensor.ShapeAsNumpy())
    )
    if tensor.Type() == tflite.TensorType.FLOAT32:
        return np.asarray(data, np.float32)
    quantization = tensor.Quantization()
    shape = [1] * data.ndim
    shape[quantization.QuantizedDimension()] = -1
    scale, zero = quantization.ScaleAsNumpy().reshape(shape), quantization.ZeroPointAsNumpy().reshape(shape)
    return np.asarray((data.astype(np.float64) - zero) * scale, np.float32)


def _take(
    left: list[Layer], path: str, module: nn.Conv2d | nn.Linear | nn.BatchNorm1d | nn.BatchNorm2d
) -> Layer:
    """Removes and returns the first layer with the module's shape of weights."""
    shape = tuple(module.weight.shape)
    position = next((i for i, layer in enumerate(left) if layer["weight"].shape == shape), None)
    if position is None:
        raise ValueError(f"the file has no layer with weights {shape}, as {path} needs")
    return left.pop(position)


def _identity(norm: nn.BatchNorm1d | nn.BatchNorm2d) -> Layer:
    """Statistics with which a batch norm is the identity."""
    ones, zeros = np.ones(norm.num_features, np.float32), np.zeros(norm.num_features, np.float32)
    return {"weight": ones, "bias": zeros, "running_mean": zeros, "running_var": ones - np.float32(norm.eps)}


def _creation(name: str) -> int:
    """Keras numbers the layers of each class: conv2d, conv2d_1, ..."""
    number = re.search(r"_(\d+)$", name)
    return int(number[1]) if number else 0


def _text(name: str | bytes) -> str:
    return name.decode() if isinstance(name, bytes) else name


if __name__ == "__main__":
    main()
