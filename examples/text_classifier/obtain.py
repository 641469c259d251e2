"""Downloads the SMS Spam Collection and splits it.

    python examples/text_classifier/obtain.py           # ../shared/data/sms_spam.npz

Lines are `ham` or `spam`, a tab and the text. Messages that are there twice are left out; a fifth is for evaluation.
"""

import argparse
import urllib.request
from pathlib import Path

import numpy as np
from messages import FILE, Arrays

URL = (
    "https://raw.githubusercontent.com/krishnaik06/Huggingfacetransformer/"
    "8e97d009508252d1a31ac1fdbd2722f310d99d92/SMSSpamCollection"
)
SEED, EVALUATION = 20240711, 5  # one message in so many


def main(arguments: list[str] | None = None) -> None:
    """Obtains the file if it is missing."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=FILE)
    parser.add_argument("--source", default=URL, help="address of the collection, such as file:///...")
    options = parser.parse_args(arguments)
    if options.output.exists():
        return
    with urllib.request.urlopen(options.source, timeout=60) as response:
        arrays = split(response.read().decode())
    options.output.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(options.output, allow_pickle=False, **arrays)
    print(options.output)


def split(collection: str) -> Arrays:
    """Texts, joined as UTF-8 with offsets, and labels of both parts, with the same share of spam in each."""
    found = {
        text: kind for kind, _, text in (line.partition("\t") for line in collection.splitlines()) if text
    }
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    generator = np.random.default_rng(SEED)
    for label, kind in enumerate(("ham", "spam")):
        texts = [text for text, of in found.items() if of == kind]
        for place, index in enumerate(generator.permutation(len(texts))):
            parts["test" if place % EVALUATION == 0 else "train"].append((texts[index], label))
    arrays: Arrays = {}
    for name, messages in parts.items():
        shuffled = [messages[index] for index in generator.permutation(len(messages))]
        contents = [text.encode() for text, _ in shuffled]
        arrays[f"text_{name}"] = np.frombuffer(b"".join(contents), np.uint8)
        arrays[f"offset_{name}"] = np.cumsum([0, *map(len, contents)])
        arrays[f"y_{name}"] = np.array([label for _, label in shuffled], np.uint8)
    return arrays


if __name__ == "__main__":
    main()
