"""Compiles one step of the model to C, with a program around it that tells a story.

python examples/language_model/generate.py [--tokens 200] [--output build/generate]
"""

import argparse
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
from llama import CONTEXT
from tokenizer import BEGIN, FIRST_BYTE

from fxpress.compiler import compile_model

HERE = Path(__file__).resolve().parent
PIECES = HERE.parents[2] / "shared" / "models" / "stories260k_tokenizer.npz"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=200, help="length of the story")
    parser.add_argument(
        "--output", type=Path, default=HERE / "build" / "generate", help="folder of what is built"
    )
    options = parser.parse_args()
    folder = options.output
    compile_model(HERE / "step.yaml").write(folder)
    (folder / "pieces.h").write_text(pieces())
    written = ("stories.c", "stories_weights.c", "packed_linear.c")
    sources = [HERE / "generate.c", *(folder / "c" / name for name in written)]
    program, flags = (
        folder / "story",
        ["-std=gnu99", "-O3", "-march=native", f"-I{folder}", f"-I{folder / 'c'}"],
    )
    subprocess.run(["gcc", *flags, *sources, "-o", program, "-lm"], check=True)
    subprocess.run([program, folder / "c" / "stories_weights.bin", str(options.tokens)], check=True)


def pieces() -> str:
    """The text of each token, as a C header."""
    with np.load(PIECES) as arrays:
        text, offsets = arrays["piece_bytes"].tobytes(), arrays["piece_offset"].tolist()
    found = [text[start:end] for start, end in pairwise(offsets)]
    found[FIRST_BYTE : FIRST_BYTE + 256] = [bytes([byte]) for byte in range(256)]
    found[:FIRST_BYTE] = [b""] * FIRST_BYTE
    octal = ["".join(f"\\{byte:03o}" for byte in piece) for piece in found]
    lines = "".join(f'    "{text}",\n' for text in octal)
    return f"enum {{ BEGIN = {BEGIN}, CONTEXT = {CONTEXT} }};\n\nstatic const char *const pieces[] = {{\n{lines}}};\n"


if __name__ == "__main__":
    main()
