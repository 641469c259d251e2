"""A small convolutional network for handwritten digits of 8x8 pixels."""

from torch import Tensor, nn


class DigitNet(nn.Module):
    """[n, 1, 8, 8] pixels from 0 to 16 to ten digits: a residual block, a separable one, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.residual = nn.Sequential(
            nn.Conv2d(16, 16, 3, padding=1, bias=False),
            nn.BatchNorm2d(16),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1),
        )
        self.depthwise = nn.Sequential(
            nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU()
        )
        self.pointwise = nn.Sequential(nn.Conv2d(16, 32, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())
        self.pool = nn.AvgPool2d(4)
        self.classifier = nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        x = (x + self.residual(x)).relu()
        x = self.pool(self.pointwise(self.depthwise(x)))
        return self.classifier(x.flatten(1))
