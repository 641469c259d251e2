"""Trains the networks to which methods are applied, with the pass `finetune` from random weights.

    python examples/methods/train.py [NAME ...]         # trained/NAME.yaml, all by default

Networks with a file in build/methods are not trained again.
"""

import argparse
from pathlib import Path

from safetensors.torch import save_file

from fxpress.compiler import compile_model

HERE = Path(__file__).resolve().parent
FOLDER = HERE.parents[1] / "build" / "methods"
NETWORKS = HERE / "trained"


def main(arguments: list[str] | None = None) -> None:
    """Trains the networks without a weights file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="networks to train")
    known = sorted(path.stem for path in NETWORKS.glob("*.yaml"))
    for name in parser.parse_args(arguments).names or known:
        if not (FOLDER / f"{name}.safetensors").is_file():
            train(name)


def train(name: str) -> None:
    """Compiles trained/NAME.yaml, and stores the constants of its graph as the weights of the network."""
    compiled = compile_model(NETWORKS / f"{name}.yaml", overrides=["data.evaluation=null"])
    FOLDER.mkdir(parents=True, exist_ok=True)
    constants = {key: compiled.graph.params[key].contiguous() for key in compiled.graph.params}
    weights = {key: tensor for key, tensor in constants.items() if tensor.ndim}  # without numbers of the code
    save_file(weights, FOLDER / f"{name}.safetensors")
    print(f"{name}: {sum(tensor.numel() for tensor in weights.values()):,} weights", flush=True)


if __name__ == "__main__":
    main()
