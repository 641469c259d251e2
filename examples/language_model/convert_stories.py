"""Converts a checkpoint and a tokenizer of llama2.c to the files that `stories.yaml` and `perplexity.py` read.

    python examples/language_model/convert_stories.py                                              # downloads them
    python examples/language_model/convert_stories.py stories260K.bin tok512.bin --text input.txt

The checkpoint has seven int32 (width, hidden width, layers, heads, key-value heads, vocabulary, context) and float32
weights: embedding; attention norms, q, k, v, o of all layers; feed-forward norms, w1, w2, w3 of all layers; final norm.
The tokenizer has the length of the longest piece, then score, length and bytes of each piece.
"""

import argparse
import struct
import urllib.request
from pathlib import Path

import numpy as np
import torch
from llama import CONTEXT, HEADS, HIDDEN, KV_HEADS, LAYERS, VOCABULARY, WIDTH, Stories260K
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

SHARED = Path(__file__).resolve().parents[3] / "shared"
STORIES = "https://huggingface.co/karpathy/tinyllamas/resolve/main/stories260K"
SHAKESPEARE = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/data/tinyshakespeare"
SOURCES = (f"{STORIES}/stories260K.bin", f"{STORIES}/tok512.bin", f"{SHAKESPEARE}/input.txt")
SIZES = (WIDTH, HIDDEN, LAYERS, HEADS, KV_HEADS, VOCABULARY, CONTEXT)
BEGIN, STORY = 1, 256
TRAINING, VALIDATION = 0.9, 0.95  # shares of a text up to which the parts reach


def main(arguments: list[str] | None = None) -> None:
    """Converts, and writes the continuation that the model prefers after the first token."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, nargs="?")
    parser.add_argument("tokenizer", type=Path, nargs="?")
    parser.add_argument("--text", type=Path, help="text for measuring perplexity")
    parser.add_argument("--folder", type=Path, default=SHARED)
    options = parser.parse_args(arguments)
    if (options.checkpoint is None) != (options.tokenizer is None):
        parser.error("give both files, or none to download them")
    if options.checkpoint is None:
        options.checkpoint, options.tokenizer, options.text = _downloaded(options.folder / "downloads")
    weights = read_checkpoint(options.checkpoint.read_bytes())
    for name in ("models", "data"):
        (options.folder / name).mkdir(parents=True, exist_ok=True)
    save_file(weights, options.folder / "models" / "stories260k_llama.safetensors")
    network = Stories260K()
    network.load_state_dict(weights)
    pieces = read_tokenizer(options.tokenizer.read_bytes())
    np.savez(
        options.folder / "models" / "stories260k_tokenizer.npz",
        allow_pickle=False,
        **pieces,
        greedy_ids=np.array(greedy(network.eval(), STORY)),
    )
    if options.text is not None:
        text = np.frombuffer(options.text.read_bytes(), np.uint8)
        first, last = (int(share * len(text)) for share in (TRAINING, VALIDATION))
        np.savez(options.folder / "data" / "tinyshakespeare.npz", train=text[:first], val=text[first:last])
    print(options.folder)


def _downloaded(folder: Path) -> list[Path]:
    """Checkpoint, tokenizer and text from their public sources."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for url in SOURCES:
        files.append(folder / url.rpartition("/")[2])
        if not files[-1].exists():
            print(f"downloading {url}", flush=True)
            with urllib.request.urlopen(url, timeout=60) as response:
                files[-1].write_bytes(response.read())
    return files


def read_checkpoint(content: bytes) -> dict[str, Tensor]:
    """State dict of the network; ValueError for a checkpoint of other sizes."""
    sizes = struct.unpack_from("<7i", content)
    if sizes != SIZES:
        raise ValueError(f"the checkpoint has the sizes {sizes}, llama.py has {SIZES}")
    numbers = torch.from_numpy(np.frombuffer(content, "<f4", offset=28).copy())
    shapes = {name: tuple(t.shape) for name, t in Stories260K().state_dict().items()}
    layer = ("attention_norm", "attention.wq", "attention.wk", "attention.wv", "attention.wo",
             "ffn_norm", "ffn.w1", "ffn.w2", "ffn.w3")  # fmt: skip
    names = [f"layers.{i}.{part}.weight" for part in layer for i in range(LAYERS)]
    found, at = {}, 0
    for name in ("tok_embeddings.weight", *names, "norm.weight"):
        size = int(np.prod(shapes[name]))
        if at + size > len(numbers):
            raise ValueError(f"the checkpoint ends before {name}")
        found[name] = numbers[at : at + size].reshape(shapes[name]).clone()
        at += size
    return found


def read_tokenizer(content: bytes) -> dict[str, NDArray[np.generic]]:
    """Bytes of all pieces, where each begins, and their scores."""
    pieces, scores, at = [], [], 4
    while at < len(content):
        score, length = struct.unpack_from("<fi", content, at)
        pieces.append(content[at + 8 : at + 8 + length])
        scores.append(score)
        at += 8 + length
    offsets = np.cumsum([0, *map(len, pieces)])
    return {
        "piece_bytes": np.frombuffer(b"".join(pieces), np.uint8),
        "piece_offset": offsets,
        "score": np.array(scores, np.float32),
    }


def greedy(network: nn.Module, count: int) -> list[int]:
    """The first `count` tokens, each the most likely one."""
    tokens = [BEGIN]
    with torch.no_grad():
        while len(tokens) < count:
            tokens.append(int(network(torch.tensor([tokens]))[0, -1].argmax()))
    return tokens


if __name__ == "__main__":
    main()
