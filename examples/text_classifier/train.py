"""Trains the classifier in float, in a few minutes.

    python examples/text_classifier/train.py           # into build/text_classifier

The epoch with the least loss on the validation messages is kept. The specs of this folder read what it writes.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from messages import training, validation
from network import TextClassifier
from safetensors.torch import save_file
from torch import Tensor, nn

OUTPUT = Path(__file__).resolve().parents[2] / "build" / "text_classifier" / "weights.safetensors"
EPOCHS, BATCH, LEARNING_RATE, WEIGHT_DECAY = 10, 32, 5e-4, 0.05


def main(arguments: list[str] | None = None) -> None:
    """Trains, and writes the weights."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--messages", type=int, help="train on the first messages only")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # the sums of one thread are the same on every machine
    torch.manual_seed(0)
    ids, labels = (torch.from_numpy(x)[: options.messages] for x in training().values())
    network = trained(ids, labels, epochs=options.epochs)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), options.output)
    print(f"trained on {len(labels)} messages; see {options.output}")


def trained(ids: Tensor, labels: Tensor, *, epochs: int) -> nn.Module:
    """A network trained with AdamW; the learning rate rises and falls once."""
    network = TextClassifier()
    optimizer = torch.optim.AdamW(network.parameters(), weight_decay=WEIGHT_DECAY)
    steps = epochs * -(-len(ids) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=steps)
    held_ids, held_labels = (torch.from_numpy(x) for x in validation().values())
    best, kept = float("inf"), network.state_dict()
    for epoch in range(epochs):
        network.train()
        for chosen in torch.randperm(len(ids)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(ids[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
        network.eval()
        with torch.no_grad():
            scores = network(held_ids)
        loss = F.cross_entropy(scores, held_labels).item()
        right = int((scores.argmax(1) == held_labels).sum())
        print(
            f"epoch {epoch + 1}: validation loss {loss:.3f}, {right} of {len(held_labels)} right", flush=True
        )
        if loss < best:
            best, kept = loss, {name: tensor.clone() for name, tensor in network.state_dict().items()}
    network.load_state_dict(kept)
    return network


if __name__ == "__main__":
    main()
