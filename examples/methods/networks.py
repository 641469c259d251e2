"""Networks for images of 28x28 with which methods of compression are compared."""

import torch
from torch import Tensor, nn
from torch.nn import functional


class LeNet300(nn.Module):
    """Perceptron with layers of 300 and 100 units (LeCun et al., 1998): 266,610 weights."""

    def __init__(self, hidden: tuple[int, int] = (300, 100)) -> None:
        super().__init__()
        first, second = hidden
        self.fc1 = nn.Linear(784, first)
        self.fc2 = nn.Linear(first, second)
        self.fc3 = nn.Linear(second, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [n, 10] of images [n, 1, 28, 28]."""
        x = torch.relu(self.fc1(image.flatten(1)))
        return self.fc3(torch.relu(self.fc2(x)))


class LeNet5(nn.Module):
    """Two convolutions with pools and two linear layers (LeCun et al., 1998, as in Caffe): 431,080 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)

    def forward(self, image: Tensor) -> Tensor:
        """Scores [n, 10] of images [n, 1, 28, 28]."""
        x = functional.max_pool2d(torch.relu(self.conv1(image)), 2)
        x = functional.max_pool2d(torch.relu(self.conv2(x)), 2)
        return self.fc2(torch.relu(self.fc1(x.flatten(1))))
