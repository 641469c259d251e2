"""Obtains models and data of the MLPerf Tiny examples from their public sources.

    python examples/mlperf_tiny/obtain.py models      # 5 networks, into ../shared/models
    python examples/mlperf_tiny/obtain.py data        # CIFAR-10, keywords, spoken digits, into ../shared/data

`--folder` names another folder than ../shared. Files that exist are kept. Sources and licences are in README.md.
The data sets are other samples than those behind the figures in the documentation, so accuracies differ from these.
"""

import argparse
import csv
import io
import re
import tarfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path, PurePosixPath

import models
import numpy as np
from convert import convert
from features import mfcc, read_wave
from numpy.typing import NDArray

SHARED = Path(__file__).resolve().parents[3] / "shared"
TINY = "https://raw.githubusercontent.com/mlcommons/tiny/1afd2c9820f795965a6134facd0b4dfae41ef23f/benchmark/training"
CIFAR10 = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
KEYWORDS = "https://codeload.github.com/eembc/energyrunner/tar.gz/cf7c2f2634608a7c0ea7458ab7cb3379f2863424"
DIGITS = "https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/tar.gz/26eb9aaf76e81b692f806f9140c2d2777410d7a1"

NETWORKS: Mapping[str, tuple[str, str]] = {
    "ic01_resnet8": ("ResNet8", "image_classification/trained_models/pretrainedResnet.h5"),
    "vww01_mobilenetv1_025": ("MobileNet", "visual_wake_words/trained_models/vww_96.h5"),
    "kws01_dscnn": ("KeywordNet", "keyword_spotting/trained_models/kws_ref_model_float32.tflite"),
    "ad01_autoencoder": ("Autoencoder", "anomaly_detection/trained_models/ad01.h5"),
    "sww01_dscnn1d": ("WakeWordNet", "streaming_wakeword/trained_models/str_ww_ref_model.h5"),
}
"""Class in models.py and published file of each network."""

Arrays = dict[str, NDArray[np.generic]]
Members = Iterator[tuple[PurePosixPath, bytes]]


def main(arguments: list[str] | None = None) -> None:
    """Obtains missing files."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("models", "data"))
    parser.add_argument("--folder", type=Path, default=SHARED)
    options = parser.parse_args(arguments)
    (obtain_models if options.what == "models" else obtain_data)(options.folder)


def obtain_models(folder: Path) -> None:
    """Downloads and converts the networks."""
    for name, (network, path) in NETWORKS.items():
        target = folder / "models" / f"{name}.safetensors"
        if target.exists():
            continue
        source = folder / "downloads" / PurePosixPath(path).name
        source.parent.mkdir(parents=True, exist_ok=True)
        source.write_bytes(_download(f"{TINY}/{path}"))
        convert(getattr(models, network)(), source, target)
        print(target)


def obtain_data(folder: Path) -> None:
    """Downloads and converts the data sets."""
    makers: Mapping[tuple[str, ...], Callable[[], Mapping[str, Arrays]]] = {
        ("ic01_eval_dev", "cifar10_lossless_calib", "cifar10_jpeg_subset"): lambda: images(_members(CIFAR10)),
        ("kws01_eval_dev",): lambda: keywords(_members(KEYWORDS)),
        ("fsdd_mfcc",): lambda: spoken_digits(_members(DIGITS)),
        ("sww01_calibration",): lambda: wake_words(
            _download(f"{TINY}/streaming_wakeword/calibration_samples.npz")
        ),
    }
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for names, make in makers.items():
        if all((folder / "data" / f"{name}.npz").exists() for name in names):
            continue
        for name, arrays in make().items():
            target = folder / "data" / f"{name}.npz"
            if not target.exists():
                np.savez_compressed(target, allow_pickle=False, **arrays)
                print(target)


def images(members: Members) -> dict[str, Arrays]:
    """CIFAR-10 in its binary form: records of a label and 3072 bytes, [3, 32, 32]."""
    parts = {"train": list[NDArray[np.uint8]](), "test": list[NDArray[np.uint8]]()}
    for path, content in members:
        if path.suffix == ".bin":
            parts["test" if path.name.startswith("test") else "train"].append(
                np.frombuffer(content, np.uint8).reshape(-1, 3073)
            )
    x, y = {}, {}
    for part, records in parts.items():
        joined = np.concatenate(records)
        x[part], y[part] = joined[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), joined[:, 0]
    return {
        "ic01_eval_dev": {"x": x["test"][:1000], "y": y["test"][:1000]},
        "cifar10_lossless_calib": {"x": x["train"][:500], "y": y["train"][:500]},
        "cifar10_jpeg_subset": {
            "x_train": x["train"][500:7500],
            "y_train": y["train"][500:7500],
            "x_test": x["test"][1000:3000],
            "y_test": y["test"][1000:3000],
        },
    }


def keywords(members: Members) -> dict[str, Arrays]:
    """The accuracy set of MLPerf Tiny: files of 49 x 10 MFCCs in int8, and y_labels.csv with file, classes, label."""
    files: dict[str, NDArray[np.int8]] = {}
    labels: dict[str, int] = {}
    for path, content in members:
        if path.parent.name == "kws01" and path.suffix == ".bin":
            files[path.name] = np.frombuffer(content, np.int8).reshape(49, 10)
        elif path.parent.name == "kws01" and path.name == "y_labels.csv":
            labels = {row[0].strip(): int(row[2]) for row in csv.reader(io.StringIO(content.decode())) if row}
    names = [name for name in labels if name in files]
    x = np.stack([files[name] for name in names])
    return {"kws01_eval_dev": {"x": x, "y": np.array([labels[name] for name in names], np.uint8)}}


def spoken_digits(members: Members) -> dict[str, Arrays]:
    """Free Spoken Digit Dataset, DIGIT_SPEAKER_TAKE.wav: takes 0 to 4 are for testing, from 10 on for training."""
    found: dict[str, list[tuple[int, NDArray[np.float32]]]] = {"train": [], "test": []}
    for path, content in sorted(members):
        name = re.fullmatch(r"(\d)_\w+_(\d+)", path.stem)
        if name is None or path.suffix != ".wav":
            continue
        take = int(name[2])
        if take < 5 or take >= 10:
            found["test" if take < 5 else "train"].append((int(name[1]), mfcc(read_wave(content))))
    arrays: Arrays = {}
    for part, samples in found.items():
        arrays[f"x_{part}"] = np.stack([x for _, x in samples])
        arrays[f"y_{part}"] = np.array([digit for digit, _ in samples], np.uint8)
    return {"fsdd_mfcc": arrays}


def wake_words(archive: bytes) -> dict[str, Arrays]:
    """Calibration samples of the streaming wake word: `specs` [n, 30, 1, 40] and `labels`, classes or one-hot."""
    with np.load(io.BytesIO(archive)) as arrays:
        x, labels = arrays["specs"].astype(np.float32).reshape(-1, 30, 1, 40), arrays["labels"]
    classes = labels.argmax(-1) if labels.ndim > 1 and labels.shape[-1] > 1 else labels.reshape(-1)
    return {"sww01_calibration": {"x": x, "y": classes.astype(np.uint8)}}


def _download(url: str) -> bytes:
    print(f"downloading {url}", flush=True)
    with urllib.request.urlopen(url, timeout=60) as response:
        content: bytes = response.read()
    return content


def _members(url: str) -> Members:
    """Paths and contents of the files of a .tar.gz, read as a stream."""
    print(f"downloading {url}", flush=True)
    with (
        urllib.request.urlopen(url, timeout=60) as response,
        tarfile.open(fileobj=response, mode="r|gz") as archive,
    ):
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                yield PurePosixPath(member.name), file.read()


if __name__ == "__main__":
    main()
