"""Trains `network.DigitNet` on scikit-learn's digits in a few seconds, and writes the files that `digits.yaml` reads.

python examples/digits/train.py                       # into build/digits: weights, calibration and test images
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from network import DigitNet
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

FOLDER = Path(__file__).resolve().parents[2] / "build" / "digits"
EPOCHS, BATCH = 12, 64


def train(images: torch.Tensor, labels: torch.Tensor) -> DigitNet:
    """A network trained with Adam; the learning rate rises and falls once."""
    torch.manual_seed(0)
    network = DigitNet()
    optimizer = torch.optim.Adam(network.parameters())
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.01, total_steps=steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(network(images[chosen]), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def main() -> None:
    """Trains, and writes build/digits."""
    digits = load_digits()
    images = digits.images[:, None].astype(np.float32)
    split = train_test_split(images, digits.target, test_size=0.25, random_state=0, stratify=digits.target)
    train_images, test_images, train_labels, test_labels = split
    torch.set_num_threads(1)  # the sums of one thread are the same on every machine
    network = train(torch.from_numpy(train_images), torch.from_numpy(train_labels))
    with torch.no_grad():
        right = int((network(torch.from_numpy(test_images)).argmax(1).numpy() == test_labels).sum())
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file(network.state_dict(), FOLDER / "digits.safetensors")
    np.savez(FOLDER / "train.npz", image=train_images, label=train_labels)
    np.savez(FOLDER / "test.npz", image=test_images, label=test_labels)
    print(
        f"trained on {len(train_images)} digits; {right} of {len(test_images)} test digits right; see {FOLDER}"
    )


if __name__ == "__main__":
    main()
