"""Networks of public packages, as torch modules: face detection, pitch, voice activity, a wake word, chemistry.

Attribute names are those of the published weights. Each docstring contains the source, and shapes of inputs and
outputs.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LargeResidualBlock(nn.Module):
    """Two 3x3 convolutions, batch norm folded into them, and a shortcut; "SAME" padding, the odd row last."""

    def __init__(self, channels_in: int, channels: int, *, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride=stride)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        if stride > 1:
            self.shortcut = nn.Conv2d(channels_in, channels, 1, stride=stride)

    def forward(self, x: Tensor) -> Tensor:
        padding = (0, 1, 0, 1) if self.stride > 1 else (1, 1, 1, 1)
        y = self.conv2(F.relu(self.conv1(F.pad(x, padding))))
        return F.relu(y + (self.shortcut(x) if self.stride > 1 else x))


class LargeResNet8(nn.Module):
    """Image classification of MLPerf Tiny 1.4: [n, 3, 32, 32] pixels from 0 to 255 to 10 classes of CIFAR-10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 40, 3, padding=1)
        self.block1 = LargeResidualBlock(40, 40, stride=1)
        self.block2 = LargeResidualBlock(40, 80, stride=2)
        self.block3 = LargeResidualBlock(80, 160, stride=2)
        self.fc = nn.Linear(160, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.conv1(image))
        x = self.block3(self.block2(self.block1(x)))
        return self.fc(F.avg_pool2d(x, 8).flatten(1))


class ProposalNet(nn.Module):
    """MTCNN's first stage (Zhang et al. 2016): [n, 3, 24, 24], (pixel - 127.5) / 128, to boxes and face probabilities.

    Fully convolutional; outputs [n, 4, h, w] and [n, 2, h, w], one place for each two pixels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, 3)
        self.prelu1 = nn.PReLU(10)
        self.pool1 = nn.MaxPool2d(2, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(10, 16, 3)
        self.prelu2 = nn.PReLU(16)
        self.conv3 = nn.Conv2d(16, 32, 3)
        self.prelu3 = nn.PReLU(32)
        self.conv4_1 = nn.Conv2d(32, 2, 1)
        self.conv4_2 = nn.Conv2d(32, 4, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(image)))
        x = self.prelu3(self.conv3(self.prelu2(self.conv2(x))))
        return self.conv4_2(x), torch.softmax(self.conv4_1(x), 1)


class RefinementNet(nn.Module):
    """MTCNN's second stage: windows [n, 3, 24, 24] to a box [n, 4] and probabilities [n, 2] of no face and face."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 28, 3)
        self.prelu1 = nn.PReLU(28)
        self.pool1 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv2 = nn.Conv2d(28, 48, 3)
        self.prelu2 = nn.PReLU(48)
        self.pool2 = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.conv3 = nn.Conv2d(48, 64, 2)
        self.prelu3 = nn.PReLU(64)
        self.dense4 = nn.Linear(576, 128)
        self.prelu4 = nn.PReLU(128)
        self.dense5_1 = nn.Linear(128, 2)
        self.dense5_2 = nn.Linear(128, 4)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x = self.pool1(self.prelu1(self.conv1(image)))
        x = self.pool2(self.prelu2(self.conv2(x)))
        x = self.prelu3(self.conv3(x)).permute(0, 3, 2, 1).flatten(1)
        x = self.prelu4(self.dense4(x))
        return self.dense5_2(x), torch.softmax(self.dense5_1(x), 1)


class Crepe(nn.Module):
    """CREPE tiny (Kim et al. 2018): [n, 1, 1024] samples at 16 kHz, normalized, to logits of 360 pitches."""

    def __init__(self) -> None:
        super().__init__()
        widths = (1, 128, 16, 16, 16, 32, 64)
        for index, (before, after) in enumerate(pairwise(widths), start=1):
            kernel, stride = (512, 4) if index == 1 else (64, 1)
            setattr(self, f"conv{index}", nn.Conv1d(before, after, kernel, stride=stride))
            setattr(self, f"bn{index}", nn.BatchNorm1d(after, eps=1e-3))
        self.classifier = nn.Linear(256, 360)

    def forward(self, frame: Tensor) -> Tensor:
        x = frame
        for index in range(1, 7):
            x = F.pad(x, (254, 254) if index == 1 else (31, 32))
            x = getattr(self, f"bn{index}")(F.relu(getattr(self, f"conv{index}")(x)))
            x = F.max_pool1d(x, 2)
        return self.classifier(x.transpose(1, 2).flatten(1))


class _Magnitude(nn.Module):
    """The magnitudes of a spectrum whose first half of channels is real and second half imaginary."""

    def forward(self, x: Tensor) -> Tensor:
        real, imaginary = x.chunk(2, 1)
        return torch.sqrt(real**2 + imaginary**2)


class VoiceActivity(nn.Module):
    """Silero VAD at 16 kHz, one step of 32 ms: 64 old and 512 new samples [n, 576], and the state of an LSTM cell.

    The state, h and c, is [n, 128] each. Outputs: the probability of speech [n, 1] and the next state.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stft_conv = nn.Conv1d(1, 258, 256, stride=128, bias=False)
        self.magnitude = _Magnitude()
        self.conv1 = nn.Conv1d(129, 128, 3, padding=1)
        self.conv2 = nn.Conv1d(128, 64, 3, stride=2, padding=1)
        self.conv3 = nn.Conv1d(64, 64, 3, stride=2, padding=1)
        self.conv4 = nn.Conv1d(64, 128, 3, padding=1)
        self.lstm_cell = nn.LSTMCell(128, 128)
        self.final_conv = nn.Conv1d(128, 1, 1)

    def forward(self, wave: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.magnitude(self.stft_conv(F.pad(wave[:, None], (0, 64), mode="reflect")))
        for layer in (self.conv1, self.conv2, self.conv3, self.conv4):
            x = F.relu(layer(x))
        h, c = self.lstm_cell(x.squeeze(2), (h, c))
        return torch.sigmoid(self.final_conv(F.relu(h)[:, :, None])).squeeze(2), h, c


class _MixedDepthwise(nn.Module):
    """A depthwise convolution over time, or two of different lengths on halves of the channels, then a 1x1
    convolution.
    """

    def __init__(self, kernels: Sequence[int], channels: int = 64) -> None:
        super().__init__()
        each = channels // len(kernels)
        self.skipped = [
            max(kernels) - kernel for kernel in kernels
        ]  # steps that a shorter convolution does not read
        self.dw = nn.ModuleList(nn.Conv1d(each, each, kernel, groups=each) for kernel in kernels)
        self.pw = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        halves = x.chunk(len(self.dw), 1)
        parts = [
            layer(part[:, :, start:])
            for layer, part, start in zip(self.dw, halves, self.skipped, strict=True)
        ]
        return F.relu(self.pw(torch.cat(parts, 1)))


class OkayNabu(nn.Module):
    """A streaming wake word as a window: [n, 40, 161] frames of features to the logit of the last step [n, 1]."""

    KERNELS = ((3,), (5, 9), (7, 13), (9, 15), (17,))

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(40, 64, 5, stride=3)
        for index, kernels in enumerate(self.KERNELS, start=1):
            setattr(self, f"block{index}", _MixedDepthwise(kernels))
        self.fc = nn.Linear(64, 1)

    def forward(self, features: Tensor) -> Tensor:
        x = F.relu(self.conv1(features))
        for index in range(1, 6):
            x = getattr(self, f"block{index}")(x)
        return self.fc(x[:, :, -1])


class _SharedLayer(nn.Module):
    """A transformer layer with post-norm: 8 heads of 32, a feed-forward of 512."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(256, 256) for _ in range(4))
        self.fc1, self.fc2 = nn.Linear(256, 512), nn.Linear(512, 256)
        self.norm1, self.norm2 = (nn.LayerNorm(256, eps=1e-12) for _ in range(2))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        n, t, _ = x.shape
        q, k, v = (layer(x).view(n, t, 8, 32).transpose(1, 2) for layer in (self.q, self.k, self.v))
        scores = q @ k.transpose(2, 3) / math.sqrt(32)
        scores = scores if mask is None else scores + mask
        mixed = (torch.softmax(scores, -1) @ v).transpose(1, 2).reshape(n, t, 256)
        x = self.norm1(x + self.o(mixed))
        return self.norm2(x + self.fc2(F.gelu(self.fc1(x))))


class _Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.word, self.pos, self.seg = nn.Embedding(591, 128), nn.Embedding(512, 128), nn.Embedding(2, 128)
        self.norm, self.proj = nn.LayerNorm(128, eps=1e-12), nn.Linear(128, 256)

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1])
        return self.proj(self.norm(self.word(ids) + self.pos(places) + self.seg.weight[0]))


class _Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dense, self.norm = nn.Linear(256, 128), nn.LayerNorm(128, eps=1e-12)
        self.bias = nn.Parameter(torch.zeros(591))


class ReactionAlbert(nn.Module):
    """RXNMapper's ALBERT: tokens of a reaction [n, t] to logits [n, t, 591]; one layer, applied 12 times."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = _Embedding()
        self.layer = _SharedLayer()
        self.head = _Head()

    def forward(self, ids: Tensor) -> Tensor:
        return self.scores(ids, None)

    def scores(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """Logits; the mask is added to the scores of attention."""
        x = self.embed(ids)
        for _ in range(12):
            x = self.layer(x, mask)
        x = self.head.norm(F.gelu(self.head.dense(x)))
        return F.linear(x, self.embed.word.weight, self.head.bias)


class PaddedReactionAlbert(ReactionAlbert):
    """The same for sequences that end with padding (token 0), which no token attends to."""

    def forward(self, ids: Tensor) -> Tensor:
        is_padding = (ids == 0)[:, None, None]
        return self.scores(ids, torch.where(is_padding, -torch.inf, 0.0))
