"""Small models, each with something that an estimate by layers could get wrong, with data they take."""

import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

N, T, WORDS, CLASSES = 5, 4, 7, 3


class Text(nn.Module):
    """Tokens (N, T) -> logits (N, T, CLASSES), from a body on (N, T, width)."""

    def __init__(self, body, width=4, padding=None):
        super().__init__()
        self.table = nn.Embedding(WORDS, width, padding_idx=padding)
        self.body = body
        self.head = nn.Linear(width, CLASSES)

    def forward(self, tokens):
        return self.head(self.body(self.table(tokens)))


class Attention(nn.Module):
    """Pre-norm causal attention, with projections of its own or nn.MultiheadAttention."""

    def __init__(self, width=4, own=True):
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width) if own else None
        self.torchs = None if own else nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        h = self.norm(x)
        if self.qkv is not None:
            q, k, v = self.qkv(h).chunk(3, -1)
            return x + functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        later = torch.triu(torch.ones(h.shape[1], h.shape[1], dtype=torch.bool), 1)
        return x + self.torchs(h, h, h, attn_mask=later, need_weights=False)[0]


class Gain(nn.Module):
    """A norm nobody knows."""

    def __init__(self, width):
        super().__init__()
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x):
        return functional.rms_norm(x, self.gain.shape, self.gain)


class Positions(nn.Module):
    """A table for all examples, which has no dimension for them."""

    def __init__(self, width=4):
        super().__init__()
        self.table = nn.Embedding(T, width)
        self.bare = nn.Parameter(torch.randn(T, width))

    def forward(self, x):
        return x + self.table(torch.arange(x.shape[1])) + self.bare[: x.shape[1]]


class TimeFirst(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.lstm = nn.LSTM(width, width)
        self.linear = nn.Linear(width, width)

    def forward(self, x):
        return self.linear(self.lstm(x.transpose(0, 1))[0]).transpose(0, 1)


class Tied(nn.Module):
    """An embedding that is also the output, as a layer or by a function."""

    def __init__(self, as_layer, width=3):
        super().__init__()
        self.table = nn.Embedding(WORDS, width)
        self.attention = Attention(width)
        self.output = nn.Linear(width, WORDS, bias=False) if as_layer else None
        if as_layer:
            self.output.weight = self.table.weight

    def forward(self, tokens):
        h = self.attention(self.table(tokens))
        return functional.linear(h, self.table.weight) if self.output is None else self.output(h)


class Twice(nn.Module):
    """One layer called twice, its weight also a penalty of the logits, and a layer that is never called."""

    def __init__(self):
        super().__init__()
        self.shared, self.never, self.last = nn.Linear(4, 4), nn.Linear(2, 2), nn.Linear(4, CLASSES)
        self.scale = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        h = self.shared(x).tanh()
        return self.scale * self.last(self.shared(h).relu_() + self.shared.bias.sum())


class Windows(nn.Module):
    """Flattens examples and positions together, and folds them back."""

    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Linear(4, 4), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(self.inner(x.reshape(-1, 4)).tanh_().reshape(x.shape))


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner, self.last = nn.Sequential(nn.Linear(4, 4), nn.Tanh()), nn.Linear(4, CLASSES)

    def forward(self, x):
        return self.last(checkpoint(self.inner, x, use_reentrant=False))


def _frozen():
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, CLASSES))
    net[0].weight.requires_grad_(False)
    return net


def _conv_net():
    return nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2),
        nn.GroupNorm(2, 4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 3, 3, padding="same", padding_mode="circular", bias=False),
        nn.BatchNorm2d(3),
        nn.Flatten(),
        nn.LazyLinear(CLASSES),
    )


def _batch_normed():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, CLASSES))
    net(torch.randn(9, 4))
    return net.eval()


def _weight_normed():
    return nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 5)), nn.Tanh(), nn.Linear(5, CLASSES))


def vectors(*shape):
    return torch.randn(N, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def tokens():
    return torch.randint(WORDS, (N, T), generator=torch.Generator().manual_seed(2))


def classes(*shape, of=CLASSES):
    return torch.randint(of, (N, *shape), generator=torch.Generator().manual_seed(3))


ZOO = {  # name -> (model, inputs, targets)
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, CLASSES)), lambda: vectors(4), classes),
    "frozen weight": (_frozen, lambda: vectors(4), classes),
    "batch norm in eval mode": (_batch_normed, lambda: vectors(4), classes),
    "weight norm": (_weight_normed, lambda: vectors(4), classes),
    "conv": (_conv_net, lambda: vectors(2, 4, 4), classes),
    "conv 1d": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, padding=1, padding_mode="replicate"), nn.Flatten(), nn.Linear(16, CLASSES)
        ),
        lambda: vectors(2, 4),
        classes,
    ),
    "conv 3d": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.Tanh(), nn.Flatten(), nn.Linear(2, CLASSES)),
        lambda: vectors(1, 2, 2, 2),
        classes,
    ),
    "vectors at positions": (Windows, lambda: vectors(T, 4), lambda: classes(T)),
    "checkpoint": (Checkpointed, lambda: vectors(T, 4), lambda: classes(T)),
    "text": (lambda: Text(nn.RMSNorm(4), padding=0), tokens, lambda: classes(T)),
    "attention": (lambda: Text(Attention()), tokens, lambda: classes(T)),
    "nn.MultiheadAttention": (lambda: Text(Attention(own=False)), tokens, lambda: classes(T)),
    "a norm nobody knows": (lambda: Text(Gain(4)), tokens, lambda: classes(T)),
    "positions": (lambda: Text(Positions()), tokens, lambda: classes(T)),
    "time first": (lambda: Text(TimeFirst()), tokens, lambda: classes(T)),
    "tied as a layer": (lambda: Tied(True), tokens, lambda: classes(T, of=WORDS)),
    "tied by a function": (lambda: Tied(False), tokens, lambda: classes(T, of=WORDS)),
    "called twice": (Twice, lambda: vectors(4), classes),
}


def animal(name):
    """(model, inputs, targets) in float64."""
    model, inputs, targets = ZOO[name]
    torch.manual_seed(0)
    made = model()
    if any(nn.parameter.is_lazy(p) for p in made.parameters()):
        made(inputs().float())
        made.eval()
    return made.double(), inputs(), targets()
