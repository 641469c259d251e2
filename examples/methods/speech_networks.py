"""Networks for spoken digits, 49 frames of 10 cepstra: a recurrent teacher, and a perceptron as its student."""

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """GRU over the frames; its mean state is classified."""

    def __init__(self, units: int = 48) -> None:
        super().__init__()
        self.gru = nn.GRU(10, units, batch_first=True)
        self.head = nn.Linear(units, 10)

    def forward(self, frames: Tensor) -> Tensor:
        """Scores [n, 10] of frames [n, 49, 10]."""
        states, _ = self.gru(frames)
        return self.head(states.mean(1))


class Perceptron(nn.Module):
    """One hidden layer over all frames."""

    def __init__(self, units: int = 32) -> None:
        super().__init__()
        self.hidden = nn.Linear(490, units)
        self.head = nn.Linear(units, 10)

    def forward(self, frames: Tensor) -> Tensor:
        """Scores [n, 10] of frames [n, 49, 10]."""
        return self.head(torch.relu(self.hidden(frames.flatten(1))))
