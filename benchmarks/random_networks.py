"""Random networks of the layers that small networks are made of, for fitting: layers, sizes and order by a seed.

Each block takes an image, a sequence or a vector and returns one; sizes are drawn so that kernels of every
variant occur: odd and even channels, multiples of four, strides, dilations, uneven padding, fused activations.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
_CHANNELS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64)
_ACTIVATIONS: tuple[Callable[[], nn.Module], ...] = (
    nn.ReLU, nn.ReLU, nn.ReLU, nn.ReLU6, nn.Identity, nn.Identity, nn.Hardswish, nn.SiLU, nn.GELU, nn.LeakyReLU,
    nn.Sigmoid, nn.Tanh, nn.Hardsigmoid, nn.ELU, nn.PReLU,
)  # fmt: skip


class _Residual(nn.Module):
    def __init__(self, body: nn.Module, after: nn.Module) -> None:
        super().__init__()
        self.body, self.after = body, after

    def forward(self, x: Tensor) -> Tensor:
        return self.after(x + self.body(x))


class _Gated(nn.Module):
    """Squeeze and excitation."""

    def __init__(self, channels: int, hidden: int, gate: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, hidden, 1),
            nn.ReLU(),
            nn.Conv2d(hidden, channels, 1),
            gate,
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.body(x)


class _Concatenated(nn.Module):
    def __init__(self, *bodies: nn.Module) -> None:
        super().__init__()
        self.bodies = nn.ModuleList(bodies)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([body(x) for body in self.bodies], 1)


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attend(x, x, x, need_weights=False)[0]


class _Recurrent(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class _Scaled(nn.Module):
    def __init__(self, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.get_buffer("scale") + 0.5


class _Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def random_network(seed: int, *, blocks: int = 14) -> tuple[nn.Module, Shape]:
    """A network of `blocks` blocks, in evaluation mode, and the shape of its input."""
    torch.manual_seed(seed)
    return _Draft(random.Random(seed)).network(blocks)


class _Draft:
    """Draws blocks; `shape` is the shape of the current value, without the batch."""

    def __init__(self, draw: random.Random) -> None:
        self._draw = draw
        self.shape: Shape = ()

    def network(self, blocks: int) -> tuple[nn.Module, Shape]:
        draw = self._draw
        kind = draw.choice(("image", "image", "image", "signal", "sequence", "vector"))
        if kind == "image":
            self.shape = (draw.choice((1, 3, 4)), draw.randint(12, 40), draw.randint(12, 40))
        elif kind == "signal":
            self.shape = (draw.choice((1, 3, 6, 16, 40)), draw.randint(24, 120))
        elif kind == "sequence":
            self.shape = (draw.randint(4, 30), draw.choice((8, 12, 16, 24, 32)))
        else:
            self.shape = (draw.choice((8, 17, 40, 64, 100)),)
        start = self.shape
        self._kind = kind
        layers = [self._block() for _ in range(blocks)]
        if self._kind != "vector":
            layers.append(self._to_vector())
        layers.append(self._linear())
        if draw.random() < 0.3:
            layers.append(nn.Softmax(-1))
        network = nn.Sequential(*layers).eval()
        for module in network.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                mean, variance = module.running_mean, module.running_var
                assert mean is not None and variance is not None
                mean.normal_(0, 0.1)
                variance.uniform_(0.5, 1.5)
        return network, start

    def _block(self) -> nn.Module:
        choices = {
            "image": (self._conv, self._conv, self._conv, self._depthwise, self._depthwise, self._separable,
                      self._residual, self._pool, self._gated, self._concatenated, self._resize, self._grouped,
                      self._transposed, self._movement, self._to_vector, self._to_sequence),
            "signal": (self._conv1d, self._conv1d, self._conv1d, self._pool1d, self._residual1d, self._to_sequence,
                       self._transposed1d, self._to_vector),
            "sequence": (self._attention, self._recurrent, self._norm, self._mlp, self._mlp, self._mean, self._linear),
            "vector": (self._linear, self._linear, self._norm, self._mlp, self._elementwise),
        }[self._kind]  # fmt: skip
        return self._draw.choice(choices)()

    def _activation(self) -> nn.Module:
        return self._draw.choice(_ACTIVATIONS)()

    def _channels(self) -> int:
        return self._draw.choice(_CHANNELS)

    def _conv(self) -> nn.Module:
        draw, (c, h, w) = self._draw, self.shape
        out = self._channels()
        kernel = draw.choice((1, 1, 3, 3, 3, 5, 2, (3, 1), (1, 3), 7))
        stride = draw.choice((1, 1, 1, 2, (2, 1)))
        padded = draw.random() < 0.7
        kh, kw = kernel if isinstance(kernel, tuple) else (kernel, kernel)
        dilation = 2 if draw.random() < 0.1 and min(h, w) > 2 * max(kh, kw) else 1
        kh, kw = dilation * (kh - 1) + 1, dilation * (kw - 1) + 1
        padding = (kh // 2, kw // 2) if padded or kh > h or kw > w else (0, 0)
        if h + 2 * padding[0] < kh or w + 2 * padding[1] < kw:
            kernel, dilation, padding = 1, 1, (0, 0)
        conv = nn.Conv2d(c, out, kernel, stride, padding, dilation, bias=draw.random() < 0.8)
        return self._finished(conv, norm=draw.random() < 0.5)

    def _finished(self, layer: nn.Module, *, norm: bool) -> nn.Module:
        with torch.no_grad():
            self.shape = tuple(layer(torch.zeros(1, *self.shape)).shape[1:])
        norms = {3: nn.BatchNorm2d, 2: nn.BatchNorm1d}
        layers = [layer, *([norms[len(self.shape)](self.shape[0])] if norm else []), self._activation()]
        return nn.Sequential(*layers)

    def _depthwise(self) -> nn.Module:
        draw, (c, h, w) = self._draw, self.shape
        kernel = draw.choice([k for k in (3, 3, 3, 5, 7, 2) if k <= min(h, w)] or [1])
        stride = draw.choice((1, 1, 2))
        multiplier = 2 if draw.random() < 0.1 else 1
        padding = draw.choice((kernel // 2, kernel // 2, 0))
        conv = nn.Conv2d(c, c * multiplier, kernel, stride, padding, groups=c, bias=draw.random() < 0.8)
        return self._finished(conv, norm=draw.random() < 0.5)

    def _separable(self) -> nn.Module:
        return nn.Sequential(self._depthwise(), self._pointwise())

    def _pointwise(self) -> nn.Module:
        return self._finished(nn.Conv2d(self.shape[0], self._channels(), 1), norm=self._draw.random() < 0.5)

    def _grouped(self) -> nn.Module:
        c = self.shape[0]
        groups = self._draw.choice([g for g in (2, 3, 4) if c % g == 0] or [1])
        kernel = 3 if min(self.shape[1:]) >= 3 else 1
        out = groups * self._draw.choice((2, 4, 6))
        return self._finished(nn.Conv2d(c, out, kernel, padding=kernel // 2, groups=groups), norm=False)

    def _transposed(self) -> nn.Module:
        c, h, w = self.shape
        if h * w > 400:
            return self._pool()
        kernel = self._draw.choice((2, 3, 4))
        return self._finished(
            nn.ConvTranspose2d(c, self._draw.choice((2, 4, 8)), kernel, 2, 1 if kernel > 2 else 0), norm=False
        )

    def _residual(self) -> nn.Module:
        c = self.shape[0]
        kernel = self._draw.choice((1, 3))
        padding = kernel // 2
        first = nn.Sequential(nn.Conv2d(c, c, kernel, padding=padding), nn.BatchNorm2d(c), nn.ReLU())
        second = nn.Sequential(nn.Conv2d(c, c, kernel, padding=padding), nn.BatchNorm2d(c))
        return _Residual(nn.Sequential(first, second), self._draw.choice((nn.ReLU, nn.Identity))())

    def _pool(self) -> nn.Module:
        kernel = self._draw.choice([k for k in (2, 2, 3) if k <= min(self.shape[1:])] or [1])
        pool = self._draw.choice((nn.MaxPool2d, nn.AvgPool2d))(
            kernel, self._draw.choice((kernel, 2, 1)), self._draw.choice((0, kernel // 2))
        )
        with torch.no_grad():
            self.shape = tuple(pool(torch.zeros(1, *self.shape)).shape[1:])
        return pool

    def _gated(self) -> nn.Module:
        return _Gated(
            self.shape[0], self._draw.choice((4, 8, 6)), self._draw.choice((nn.Sigmoid, nn.Hardsigmoid))()
        )

    def _concatenated(self) -> nn.Module:
        c = self.shape[0]
        a, b = self._draw.choice((2, 4, 7, 8)), self._draw.choice((4, 8, 3))
        bodies: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(c, a, 1), nn.ReLU()),
            nn.Sequential(nn.Conv2d(c, b, 3, padding=1), nn.ReLU()),
        ]
        if self._draw.random() < 0.3:
            bodies.append(nn.MaxPool2d(3, 1, 1))
        self.shape = (a + b + (c if len(bodies) == 3 else 0), *self.shape[1:])
        return _Concatenated(*bodies)

    def _resize(self) -> nn.Module:
        c, h, w = self.shape
        if h * w > 400:
            return self._pool()
        self.shape = (c, 2 * h, 2 * w)
        return nn.Upsample(scale_factor=2, mode=self._draw.choice(("nearest", "bilinear")))

    def _movement(self) -> nn.Module:
        c, h, w = self.shape
        kind = self._draw.choice(("pad", "flip", "transpose", "shuffle", "slice"))
        if kind == "pad":
            self.shape = (c, h + 2, w + 1)
            return nn.ZeroPad2d((0, 1, 1, 1))
        if kind == "transpose":
            self.shape = (c, w, h)
            return _Function(lambda x: x.transpose(2, 3) * 1.0)
        if kind == "shuffle" and c % 4 == 0:
            self.shape = (c // 4, 2 * h, 2 * w)
            return nn.PixelShuffle(2)
        if kind == "slice" and h > 4:
            self.shape = (c, h - 2, w)
            return _Function(lambda x: x[:, :, 1:-1])
        return _Function(lambda x: x.flip(3))

    def _conv1d(self) -> nn.Module:
        draw, (c, length) = self._draw, self.shape
        kernel = draw.choice([k for k in (1, 3, 3, 5, 8) if k <= length])
        dilation = draw.choice((1, 1, 1, 2)) if length > 2 * kernel else 1
        padding = draw.choice((0, dilation * (kernel - 1) // 2))
        conv = nn.Conv1d(c, self._channels(), kernel, draw.choice((1, 1, 2)), padding, dilation)
        return self._finished(conv, norm=draw.random() < 0.5)

    def _transposed1d(self) -> nn.Module:
        return self._finished(
            nn.ConvTranspose1d(self.shape[0], self._draw.choice((4, 8, 16)), 4, 2, 1), norm=False
        )

    def _pool1d(self) -> nn.Module:
        if self.shape[1] < 4:
            return self._conv1d()
        pool = self._draw.choice((nn.MaxPool1d, nn.AvgPool1d))(2)
        self.shape = (self.shape[0], self.shape[1] // 2)
        return pool

    def _residual1d(self) -> nn.Module:
        c = self.shape[0]
        return _Residual(
            nn.Sequential(nn.Conv1d(c, c, 3, padding=1), nn.ReLU(), nn.Conv1d(c, c, 1)), nn.ReLU()
        )

    def _to_sequence(self) -> nn.Module:
        self._kind = "sequence"
        if len(self.shape) == 3:
            c, h, w = self.shape
            self.shape = (h * w, c)
            return _Function(lambda x: x.flatten(2).transpose(1, 2))
        self.shape = (self.shape[1], self.shape[0])
        return _Function(lambda x: x.transpose(1, 2))

    def _to_vector(self) -> nn.Module:
        kind, self._kind = self._kind, "vector"
        if kind == "sequence":
            self._kind = "sequence"
            return self._mean()
        if self._draw.random() < 0.5:
            pool = nn.AdaptiveAvgPool2d(1) if kind == "image" else nn.AdaptiveAvgPool1d(1)
            self.shape = (self.shape[0],)
            return nn.Sequential(pool, nn.Flatten())
        pooled = nn.AdaptiveMaxPool2d(1) if kind == "image" else nn.AdaptiveMaxPool1d(1)
        if self._draw.random() < 0.3:
            self.shape = (self.shape[0],)
            return nn.Sequential(pooled, nn.Flatten())
        size = 1
        for extent in self.shape:
            size *= extent
        self.shape = (size,)
        return nn.Flatten()

    def _linear(self) -> nn.Module:
        out = self._draw.choice((2, 3, 5, 8, 10, 12, 16, 24, 32, 64))
        layer = nn.Linear(self.shape[-1], out, bias=self._draw.random() < 0.9)
        self.shape = (*self.shape[:-1], out)
        return nn.Sequential(layer, self._activation())

    def _mlp(self) -> nn.Module:
        width, hidden = self.shape[-1], self._draw.choice((8, 16, 24, 40, 48))
        body = nn.Sequential(nn.Linear(width, hidden), self._activation(), nn.Linear(hidden, width))
        return _Residual(body, nn.Identity())

    def _norm(self) -> nn.Module:
        return nn.LayerNorm(self.shape[-1])

    def _elementwise(self) -> nn.Module:
        scale = torch.rand(self.shape)
        return self._draw.choice(
            (
                lambda: _Scaled(scale),
                lambda: _Function(torch.sin),
                nn.Softplus,
                lambda: _Function(lambda x: torch.exp(-x * x)),
                nn.Mish,
            )
        )()

    def _attention(self) -> nn.Module:
        width = self.shape[-1]
        heads = self._draw.choice([h for h in (1, 2, 4) if width % h == 0])
        return _Attention(width, heads)

    def _recurrent(self) -> nn.Module:
        hidden = self._draw.choice((6, 8, 16, 24, 32))
        cell = self._draw.choice((nn.GRU, nn.GRU, nn.LSTM, nn.LSTM, nn.RNN))(
            self.shape[-1], hidden, batch_first=True, num_layers=self._draw.choice((1, 1, 2))
        )
        self.shape = (self.shape[0], hidden)
        return _Recurrent(cell)

    def _mean(self) -> nn.Module:
        self._kind = "vector"
        self.shape = (self.shape[-1],)
        return self._draw.choice(
            (lambda: _Function(lambda x: x.mean(1)), lambda: _Function(lambda x: x[:, -1]))
        )()
