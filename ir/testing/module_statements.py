"""Statements that random modules grow by: layers of every rank, branches, shapes, masks, attention, recurrence.

All choices come from the step's digits, the simplest first. A choice that does not fit a value raises an error, as
torch itself does.
"""

from __future__ import annotations

from functools import partial

import torch

from .growth import Step
from .modules import Draft, statement

_RANK = {2: "0", 3: "1", 4: "2", 5: "3"}  # rank of [n, c, ...] to the suffix of torch's layers

_EXPRESSIONS = {
    "activation": """
        F.relu({x})
        torch.sigmoid({x})
        torch.tanh({x})
        F.relu6({x})
        F.hardswish({x})
        F.gelu({x})
        F.silu({x})
        F.leaky_relu({x}, 0.1)
        F.elu({x})
        F.softplus({x})
        {x}.clamp(-0.5, 1)
        {x}.clamp(min=0.1)
        {x}.abs()
        torch.exp(-{x}.abs())
        torch.sqrt({x}.abs() + 1)
        {x} ** 2
        F.hardtanh({x}, -2, 2)
        -{x}
        F.mish({x})
        F.gelu({x}, approximate="tanh")
        torch.log1p({x}.abs())
        torch.sin({x})
        F.hardsigmoid({x})
        torch.softmax({x}, -1)
        torch.softmax({x}, 1)
        F.log_softmax({x}, -1)
        1 / ({x}.abs() + 1)
        F.selu({x})
        F.softsign({x})
        torch.where({x} > 0, {x}, {x} * 0.3)
        """,
    "norm_by_hand": """
        {x} * torch.rsqrt({x}.pow(2).mean(-1, keepdim=True) + 1e-6)
        ({x} - {x}.mean(-1, keepdim=True)) / torch.sqrt({x}.var(-1, keepdim=True, unbiased=False) + 1e-5)
        {x} / ({x}.norm(dim=-1, keepdim=True) + 1e-3)
        F.normalize({x}, dim=1 if {x}.shape[1] > 1 else -1)
        ({x} - {x}.mean(1, keepdim=True)) / ({x}.std(1, keepdim=True) + 1e-2)
        """,
    "join": """
        {x} + {y}
        {x} * {y}
        {x} - {y}
        torch.cat([{x}, {y}], 1)
        torch.cat([{y}, {x}, {x}], -1)
        torch.maximum({x}, {y})
        torch.stack([{x}, {y}], 1)
        {x} * torch.sigmoid({y}).mean(-1, keepdim=True)
        F.relu({x} + {y})
        {x} / ({y}.abs() + 1)
        torch.minimum({x}, {y} * 2)
        torch.cat([{x}[:, :1], {y}], 1)
        """,
    "pool": """
        F.max_pool{d}d({x}, 2)
        F.avg_pool{d}d({x}, 2)
        F.adaptive_avg_pool{d}d({x}, 1)
        {x}.mean(-1)
        F.max_pool{d}d({x}, 3, stride=2, padding=1)
        F.avg_pool{d}d({x}, 3, stride=1, padding=1)
        F.avg_pool{d}d({x}, 2, ceil_mode=True, count_include_pad=False)
        F.adaptive_avg_pool{d}d({x}, 2)
        {x}.amax(-1)
        {x}.sum(1, keepdim=True)
        F.max_pool{d}d({x}, 2, stride=1, ceil_mode=True)
        {x}.mean(1)
        """,
    "shape": """
        {x}.flatten(1)
        {x}.transpose(1, -1)
        {x}.unsqueeze(1)
        {x}.reshape({n}, -1, 1)
        {x}[:, :1]
        {x}[..., ::2]
        {x}[:, 1:]
        {x}.movedim(1, -1)
        {x}.flip(-1)
        torch.roll({x}, 1, -1)
        {x}[..., -1]
        {x}.repeat_interleave(2, 1)
        F.pad({x}, (1, 2))
        F.pad({x}, (1, 1), value=0.5)
        F.pad({x}, (-1, 0))
        {x}.squeeze(1)
        {x}.expand_as({y}) + 0
        F.pad({x}, (1, 1), mode="replicate")
        F.interpolate({x}, scale_factor=2)
        F.interpolate({x}, size=5)
        F.interpolate({x}, scale_factor=2, mode="bilinear")
        {x}.contiguous().view({shape})
        F.pixel_shuffle({x}, 2)
        {x}.tile((1, 2))
        {x}[:, [0, -1]]
        {x}.narrow(1, 0, 1)
        {x}.swapaxes(0, 1)
        torch.cat({x}.chunk(2, 1)[::-1], 1)
        {x}.unflatten(1, (-1, 1))
        {x}.select(1, 0)
        F.pad({x}, (2, 1), mode="reflect")
        """,
    "product": """
        {x} @ {y}.transpose(-1, -2)
        torch.einsum("b...i,b...j->bij", {x}, {y})
        {x}.transpose(-1, -2) @ {y}
        """,
    "select": """
        torch.topk({x}, 2, dim=-1).values
        {x}.sort(-1, descending=True).values
        {x}.argmax(-1)
        {x}.max(dim=1).values
        {x}.masked_fill({x} < 0.0137, 0.25)
        torch.einsum("...i,i->...", {x}, {x}.flatten()[: {last}])
        {x}.cumsum(-1)
        F.pad(input={x}, pad=(1, 1), mode="constant", value=0.0)
        F.softmax(input={x}, dim=-1)
        F.layer_norm({x}, normalized_shape=({last},), eps=1e-4)
        {x} * ({x} > {y}.mean()).float()
        torch.clamp(input={x}, min=-1, max=1)
        """,
    "arithmetic": """
        {x} * 0.5
        {x} + 1
        1 - {x}
        {x} / 3
        ({x} - 0.5) / 0.25
        2 * {x} + {x}
        {x} * 30
        {x} * 0
        """,
}
"""Right-hand sides of plain statements, the simplest first: value x, partner y of its shape, suffix d of its rank."""


def _write_expression(kind: str, draft: Draft, x: str, step: Step) -> None:
    """Appends one of the expressions of `kind` to `forward`."""
    shape, templates = draft.values[x].shape, _EXPRESSIONS[kind].split("\n")[1:-1]
    template = templates[(step.digits[0] + 12 * step.digits[1]) % len(templates)].strip()
    words = {"n": shape[0], "last": shape[-1], "shape": tuple(shape), "d": _RANK.get(len(shape), "")}
    draft.let(template.format(x=x, y=draft.partner(x, step), **words))


for _kind in _EXPRESSIONS:
    statement(_kind)(partial(_write_expression, _kind))


def _divisor(number: int, step: Step, index: int) -> int:
    return step.pick(index, [d for d in (1, 2, number, 3, 4) if number % d == 0])


@statement("conv")
def convolution(draft: Draft, x: str, step: Step) -> None:
    """Convolution of the value's rank: groups, stride, dilation, padding of every kind."""
    shape = draft.values[x].shape
    channels, dims = shape[1], _RANK[len(shape)]
    groups = _divisor(channels, step, 0)
    out = groups * step.pick(1, [1, 2, 3, 5])
    kernel = step.pick(2, ["1", "3", "2", "3", str(tuple(range(1, int(dims) + 1))), "5"])
    extras = ["", ", padding=1", ", stride=2", ", padding='same'", ", dilation=2, padding=2", ", bias=False"]
    extras += [
        ", padding=1, padding_mode='reflect'",
        ", stride=2, padding=1",
        ", padding=1, padding_mode='circular'",
    ]
    extra = step.pick(3, extras)
    made = draft.layer(f"nn.Conv{dims}d({channels}, {out}, {kernel}, groups={groups}{extra})")
    draft.let(f"{made}({x})")


@statement("conv_transpose")
def transposed_convolution(draft: Draft, x: str, step: Step) -> None:
    """Transposed convolution of the value's rank."""
    shape = draft.values[x].shape
    channels, groups = shape[1], _divisor(shape[1], step, 0)
    out = groups * step.pick(1, [1, 2, 3])
    extra = step.pick(
        3, ["", ", stride=2", ", stride=2, padding=1, output_padding=1", ", bias=False", ", dilation=2"]
    )
    kernel = step.pick(2, [2, 3, 1])
    made = draft.layer(
        f"nn.ConvTranspose{_RANK[len(shape)]}d({channels}, {out}, {kernel}, groups={groups}{extra})"
    )
    draft.let(f"{made}({x})")


@statement("linear")
def linear(draft: Draft, x: str, step: Step) -> None:
    """Linear layer on the last dimension, of any rank."""
    bias = step.pick(1, ["", ", bias=False"])
    made = draft.layer(f"nn.Linear({draft.values[x].shape[-1]}, {step.pick(0, [4, 1, 3, 7, 8])}{bias})")
    draft.let(f"{made}({x})")


@statement("sequential")
def sequential(draft: Draft, x: str, step: Step) -> None:
    """A small block as a submodule, sometimes with a residual connection."""
    shape = draft.values[x].shape
    c, d = shape[1], _RANK[len(shape)]
    if d == "0":
        block = f"nn.Linear({c}, 6), nn.ReLU(), nn.Linear(6, {c})"
    else:
        last = step.pick(1, ["ReLU()", "Hardswish()", "PReLU()", "ReLU6(inplace=True)"])
        block = f"nn.Conv{d}d({c}, {c}, 3, padding=1), nn.BatchNorm{d}d({c}), nn.{last}"
    made = draft.layer(f"nn.Sequential({block})")
    draft.let(
        step.pick(
            0, [f"{made}({x})", f"{x} + {made}({x})", f"F.relu({made}({x}) + {x})", f"{made}({made}({x}))"]
        )
    )


@statement("norm")
def normalization(draft: Draft, x: str, step: Step) -> None:
    """Batch norm with its own statistics, and norms over dimensions."""
    shape = draft.values[x].shape
    c, dims = shape[1], _RANK[len(shape)]
    batch = f"nn.BatchNorm{'1' if dims == '0' else dims}d({c})"
    kinds = [batch, batch, f"nn.LayerNorm({shape[-1]})", f"nn.GroupNorm({_divisor(c, step, 1)}, {c})"]
    kinds += [
        f"nn.RMSNorm({shape[-1]})",
        f"nn.LayerNorm({list(shape[1:])})",
        f"nn.InstanceNorm{dims}d({c}, affine=True)",
    ]
    made = draft.layer(step.pick(0, kinds))
    if step.digits[0] % len(kinds) < 2:
        draft.prepare(f"nn.init.normal_({made}.running_mean, std=0.5)")
        draft.prepare(f"nn.init.uniform_({made}.running_var, 0.5, 2.0)")
        draft.prepare(f"nn.init.uniform_({made}.weight, -1.5, 1.5)")
    draft.let(f"{made}({x})")


@statement("operand")
def own_operand(draft: Draft, x: str, step: Step) -> None:
    """Arithmetic with a parameter or a buffer that broadcasts."""
    shape = draft.values[x].shape
    own = step.pick(2, [(shape[-1],), (1,), (shape[1], *(1,) * (len(shape) - 2)), tuple(shape)])
    if step.digits[1] % 2:
        made = f"self.b{len(draft.values)}"
        draft.prepare(f"self.register_buffer('{made[5:]}', torch.rand({own}) + 0.5)")
        draft.let(f"{x} {step.pick(0, ['+', '*', '-', '/'])} {made}")
    else:
        made = draft.parameter(f"nn.Parameter(torch.randn({own}))")
        draft.let(f"{x} {step.pick(0, ['+', '*', '-'])} {made}")


@statement("split")
def split(draft: Draft, x: str, step: Step) -> None:
    """Several parts of one value."""
    first, second = f"{x}_a", f"{x}_b"
    if first in draft.values:
        raise ValueError("this value is split already")
    half = max(1, draft.values[x].shape[1] // 2)
    rest = draft.values[x].shape[1] - half
    draft.run(f"{first}, {second} = {x}.split([{half}, {rest}], 1)", first, second)


@statement("in_place")
def in_place(draft: Draft, x: str, step: Step) -> None:
    """Statements that write in place to a value or to a view of it."""
    made = draft.let(step.pick(2, [f"{x} + 0.0", f"{x}.clone()", f"{x} * 1.5"]))
    kinds = [
        "{v}.add_({x})",
        "{v} += 1",
        "{v}.mul_(0.5)",
        "{v}[:, 0] = 0",
        "{v}[..., 0] += 1",
        "F.relu_({v})",
    ]
    kinds += [
        "{v}.clamp_(-1, 1)",
        "{v}[:, :1].mul_(2)",
        "{v}.transpose(1, -1).add_(1)",
        "{v}.view(-1)[0] = 1",
    ]
    draft.run(step.pick(0, kinds).format(v=made, x=x), made)


@statement("list")
def layer_list(draft: Draft, x: str, step: Step) -> None:
    """A loop over a list of layers, each sometimes with a residual connection."""
    size = draft.values[x].shape[-1]
    made = draft.parameter(f"nn.ModuleList(nn.Linear({size}, {size}) for _ in range({step.pick(0, [2, 3])}))")
    name = draft.let(f"{x} * 1.0")
    call = step.pick(1, [f"F.relu(layer({name}))", f"{name} + torch.tanh(layer({name}))"])
    draft.run(f"for layer in {made}: {name} = {call}", name)


@statement("shared")
def shared(draft: Draft, x: str, step: Step) -> None:
    """A call of an existing layer on another value."""
    if not draft.layers:
        raise ValueError("there is no layer yet")
    draft.let(f"{draft.layers[-1 - step.digits[0] % len(draft.layers)]}({x})")


@statement("tied")
def tied(draft: Draft, x: str, step: Step) -> None:
    """Two layers with one weight."""
    size, bias = draft.values[x].shape[-1], step.pick(0, ["", ", bias=False"])
    one, two = (draft.layer(f"nn.Linear({size}, {size}{bias})") for _ in range(2))
    draft.prepare(f"{two}.weight = {one}.weight")
    draft.let(
        step.pick(
            1,
            [
                f"{two}(torch.tanh({one}({x})))",
                f"{one}({x}) + {two}({x} * 2)",
                f"F.linear({one}({x}), {two}.weight.T)",
            ],
        )
    )


@statement("attention")
def attention(draft: Draft, x: str, step: Step) -> None:
    """Self-attention over [n, t, c], sometimes with a mask."""
    if draft.values[x].ndim != 3:
        raise ValueError("attention needs [n, t, c]")
    t, c = draft.values[x].shape[1:]
    kind = step.digits[0] % 4
    if kind == 3:
        made = draft.layer(f"nn.MultiheadAttention({c}, {_divisor(c, step, 1)}, batch_first=True)")
        draft.let(f"{made}({x}, {x}, {x}, need_weights=False)[0]")
        return
    q, k, v = (draft.let(f"{draft.layer(f'nn.Linear({c}, {c})')}({x})") for _ in range(3))
    mask = f"torch.ones({t}, {t}, dtype=torch.bool).tril()"
    scores = draft.let(f"{q} @ {k}.transpose(1, 2) / math.sqrt({c})")
    masked = [
        scores,
        f"{scores}.masked_fill(~{mask}, -1e9)",
        f"{scores} + nn.Transformer.generate_square_subsequent_mask({t})",
    ]
    if kind == 2:
        draft.let(f"F.scaled_dot_product_attention({q}, {k}, {v}, is_causal={bool(step.digits[2] % 2)})")
    else:
        draft.let(f"torch.softmax({step.pick(1, masked)}, -1) @ {v}")


@statement("recurrent")
def recurrent(draft: Draft, x: str, step: Step) -> None:
    """Recurrent layers and cells."""
    shape = draft.values[x].shape
    size = shape[-1]
    if len(shape) == 2:
        kind = step.pick(0, ["GRUCell", "LSTMCell", "RNNCell"])
        made = draft.layer(f"nn.{kind}({size}, 5)")
        state = draft.let(f"torch.tanh({draft.layer(f'nn.Linear({size}, 5)')}({x}))")
        given = f"{made}({x}, ({state}, {state} * 2))" if kind == "LSTMCell" else f"{made}({x}, {state})"
        called = step.pick(1, [f"{made}({x})", given])
        draft.let(f"{called}[0]" if kind == "LSTMCell" else called)
        return
    kind = step.pick(0, ["GRU", "LSTM", "RNN"])
    extra = step.pick(1, ["", ", bidirectional=True", ", num_layers=2", ", bias=False"])
    made = draft.layer(f"nn.{kind}({size}, 4, batch_first=True{extra})")
    draft.let(f"{made}({x})[0]")


@statement("state")
def state(draft: Draft, x: str, step: Step) -> None:
    """A state that the next call continues: of a cell, a running mean, or a window over the last positions."""
    shape = draft.values[x].shape
    kind = step.digits[0] % 4
    if kind == 3:
        if len(shape) < 2:
            raise ValueError("a window slides over positions")
        length = shape[-1] + 1 + step.digits[1] % 3
        before = draft.state((*shape[:-1], length))
        after = draft.let(f"torch.cat([{before}, {x}], -1)[..., {shape[-1]}:]")
    else:
        size = draft.values[x].numel() // shape[0]
        flat = f"{x}.flatten(1)" if len(shape) > 2 else x
        before = draft.state((shape[0], 4))
        if kind == 0:
            after = draft.let(f"{draft.layer(f'nn.GRUCell({size}, 4)')}({flat}, {before})")
        elif kind == 1:
            after = draft.let(f"torch.tanh({draft.layer(f'nn.Linear({size}, 4)')}({flat}) + {before})")
        else:
            after = draft.let(f"0.75 * {before} + {draft.layer(f'nn.Linear({size}, 4)')}({flat})")
    draft.continue_state(before, after)


@statement("pixels")
def pixels(draft: Draft, x: str, step: Step) -> None:
    """An image of bytes, scaled in the module."""
    name = f"pixels{len(draft.inputs)}"
    if any(given.startswith("pixels") for given in draft.inputs):
        raise ValueError("one image is enough")
    image = draft.input(name, step.pick(0, [(1, 1, 6, 5), (1, 3, 8, 7), (1, 12)]), torch.uint8)
    scaled = [
        f"{image}.float() / 255",
        f"({image}.float() - 127.5) / 64",
        f"{image} / 255.0 - 0.5",
        f"{image}.to(torch.float32) * 0.01",
    ]
    draft.let(step.pick(1, scaled))


@statement("embedding")
def embedding(draft: Draft, x: str, step: Step) -> None:
    """A lookup in a table by the tokens, or by their numbers in another form."""
    other = step.pick(2, ["", "F.one_hot(ids, 11).float()", "", "(ids > 0).float()", "ids.float() / 11"])
    if other:
        draft.let(other)
        return
    made = draft.layer(f"nn.Embedding(11, {step.pick(0, [4, 3, 8])}{step.pick(1, ['', ', padding_idx=0'])})")
    draft.let(f"{made}(ids)")
