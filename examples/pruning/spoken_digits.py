"""A network of spoken digits: the body of the trained keyword network, and a last layer of ten outputs.

    python examples/pruning/spoken_digits.py           # into build/pruning, in half a minute

All of it is trained on 2,400 labelled recordings. What it writes is what `spoken_digits.yaml` reads.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from training_data import spoken_digits

from fxpress.compiler import load_source
from fxpress.specs import FileSource

ROOT = Path(__file__).resolve().parents[2]
NETWORK = FileSource(ROOT / "examples" / "mlperf_tiny" / "models.py", "KeywordNet")
BODY = ROOT.parent / "shared" / "models" / "kws01_dscnn.safetensors"
OUTPUT = ROOT / "build" / "pruning" / "spoken_digits.safetensors"
EPOCHS, BATCH, LEARNING_RATE = 10, 64, 3e-3


def main(arguments: list[str] | None = None) -> None:
    """Trains, and writes the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    arrays = spoken_digits()
    mfcc, labels = torch.from_numpy(arrays["x"])[:, None], torch.from_numpy(arrays["y"]).long()
    network = trained(mfcc, labels, epochs=options.epochs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), options.output)
    print(f"trained on {len(labels)} recordings; see {options.output}")


def trained(mfcc: Tensor, labels: Tensor, *, epochs: int) -> nn.Module:
    """A network trained with AdamW; the learning rate rises and falls once."""
    torch.set_num_threads(1)  # the sums of one thread are the same on every machine
    torch.manual_seed(0)
    if not BODY.exists():
        raise FileNotFoundError(f"{BODY} is missing; run `make mlperf-models`")
    network = load_source(NETWORK, {"classes": 10}, folder=ROOT).train()
    body = {name: tensor for name, tensor in load_file(BODY).items() if not name.startswith("fc.")}
    network.load_state_dict(body, strict=False)
    optimizer = torch.optim.AdamW(network.parameters())
    steps = epochs * -(-len(mfcc) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    for _ in range(epochs):
        for chosen in torch.randperm(len(mfcc)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(mfcc[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


if __name__ == "__main__":
    main()
