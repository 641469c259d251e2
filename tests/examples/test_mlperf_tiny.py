"""The MLPerf Tiny networks as torch modules: they carry the trained weights, and are as accurate as published."""

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from fxpress.compiler.loading import load_weights
from fxpress.specs import check_spec

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "mlperf_tiny"
SHARED = Path(os.environ.get("FXPRESS_SHARED", ROOT.parent / "shared"))
needs_shared = pytest.mark.skipif(
    not (SHARED / "models" / "MODELS.md").is_file(),
    reason="the samples behind the documented figures are not in ../shared",
)

Arrange = Callable[[Tensor], Tensor]

NETWORKS = {
    "ResNet8": ("ic01_resnet8", (1, 3, 32, 32), 10),
    "KeywordNet": ("kws01_dscnn", (1, 1, 49, 10), 12),
    "MobileNet": ("vww01_mobilenetv1_025", (1, 3, 96, 96), 2),
    "Autoencoder": ("ad01_autoencoder", (1, 640), 640),
    "WakeWordNet": ("sww01_dscnn1d", (1, 40, 30, 1), 3),
}


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def network(name: str) -> torch.nn.Module:
    built: torch.nn.Module = getattr(module("models"), name)()
    load_weights(built, SHARED / "models" / f"{NETWORKS[name][0]}.safetensors")
    return built.eval()


def channels_first(x: Tensor) -> Tensor:
    return x.permute(0, 3, 1, 2)


def one_channel(x: Tensor) -> Tensor:
    return x[:, None]


def right_answers(name: str, file: str, arrange: Arrange, *, scale: float = 1.0, zero: float = 0.0) -> int:
    with np.load(SHARED / "data" / f"{file}.npz") as archive:
        x, y = torch.from_numpy(archive["x"]), torch.from_numpy(archive["y"].astype(np.int64))
    real = ((x.double() - zero) * scale).float()
    with torch.no_grad():
        return int((network(name)(arrange(real)).argmax(1) == y).sum())


@needs_shared
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_takes_its_trained_weights_and_no_others(name: str) -> None:
    file, shape, outputs = NETWORKS[name]
    with torch.no_grad():
        assert network(name)(torch.zeros(shape)).shape == (1, outputs)
    stored = load_file(SHARED / "models" / f"{file}.safetensors")
    own = {key for key in network(name).state_dict() if not key.endswith("num_batches_tracked")}
    assert own == stored.keys()


@needs_shared
def test_image_classification_is_right_on_84_of_98() -> None:
    assert right_answers("ResNet8", "ic01_eval_dev", channels_first) == 84


@needs_shared
def test_keyword_spotting_is_right_on_455_of_499() -> None:
    assert (
        right_answers("KeywordNet", "kws01_eval_dev", one_channel, scale=0.5847029089927673, zero=83) == 455
    )


@needs_shared
def test_the_wake_word_is_right_on_41_of_45() -> None:
    assert right_answers("WakeWordNet", "sww01_calibration", channels_first) == 41


def test_same_padding_puts_the_odd_row_last() -> None:
    same_padding = module("models").same_padding
    assert same_padding(32, 3, 1) == (1, 1)
    assert same_padding(32, 3, 2) == (0, 1)
    assert same_padding(49, 10, 2) == (4, 5)
    assert same_padding(32, 1, 2) == (0, 0)


@needs_shared
def test_calibration_for_keywords_lies_in_the_range_of_the_benchmark_without_its_words() -> None:
    samples = module("samples")
    x = samples.spoken_digits()["x"]
    assert x.shape[1:] == (49, 10) and len(x) >= 512
    assert -128.5 <= x.min() <= -127.5 and 100 <= x.max() <= 127.5


@needs_shared
@pytest.mark.parametrize("make", ["enlarged_images", "enlarged_test_images"])
def test_enlarged_images_keep_their_range(make: str) -> None:
    x = getattr(module("samples"), make)()["x"]
    assert x.shape[1:] == (3, 96, 96) and x.min() >= 0 and x.max() <= 1


def test_spectra_are_deterministic_and_differ_between_the_sets() -> None:
    samples = module("samples")
    one, again, other = samples.machine_spectra(), samples.machine_spectra(), samples.other_machine_spectra()
    assert np.array_equal(one["x"], again["x"])
    assert one["x"].shape == (512, 640) and other["x"].shape == (256, 640)
    assert not np.isin(other["x"][:, 0], one["x"][:, 0]).any()


@needs_shared
@pytest.mark.parametrize("name", ["ic", "kws", "vww", "ad", "sww"])
def test_every_spec_is_sound(name: str) -> None:
    assert check_spec(FOLDER / f"{name}.yaml").target.name == "cortex-m4f"
