"""A paper exercise: optimizer state and communication of models that do not fit on the machine this runs on.

    python benchmarks/at_scale.py

State is not estimated: every optimizer takes a step on tensors of the model's shapes that have no memory (the meta
device), and what it then keeps is counted. Communication is by formula. With `fully_shard` over N GPUs and T tensors,
of which M are matrices with k columns, a step sends, beside what any optimizer under FSDP2 sends,

    FAdam        8 (T) + 8 (2 T)                     bytes in two all-reduces: rms(g); rms(gbar) and rms(gw)
    FAdafactor   8 (T + M + sum of k) + 8 (2 T)      the first with column sums and sum(R)

(44 tensors of 12.8M parameters: 1,056 and 170,312 bytes, as benchmarks/communication.py counts them). Its time is, as
usual for small messages, that of two trees up and down, and its share is of the time that forward and backward take if
nothing else did: an upper bound, because whatever else takes time makes it smaller.

    time   = 2 (2 ceil(log2 N) latency) + 2 bytes / bandwidth
    share  = time / (6 parameters tokens / (N flops))
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fisheropt import FAdafactor, FAdam

RESULT = Path(__file__).parent / "results" / "at_scale.md"
GPUS = (8, 64, 512, 4096)
LATENCY = 20e-6  # s, of one hop of an all-reduce between machines
BANDWIDTH = 50e9  # bytes/s, of the network per GPU: 400 Gb/s
FLOPS = 4e14  # per second and GPU, attained: 40 % of what an H100 has in bfloat16

OPTIMIZERS = {
    "AdamW (torch)": lambda params: torch.optim.AdamW(params, foreach=False, fused=False),
    "FAdam": lambda params: FAdam(params, backend="eager"),
    "FAdam, bfloat16 state": lambda params: FAdam(params, backend="eager", state_dtype=torch.bfloat16),
    "FAdam, 8-bit state": lambda params: FAdam(params, backend="eager", state_dtype="int8"),
    "FAdafactor": lambda params: FAdafactor(params, backend="eager"),
    "FAdafactor, 8-bit state": lambda params: FAdafactor(params, backend="eager", state_dtype="int8"),
    "FAdafactor, no momentum": lambda params: FAdafactor(params, backend="eager", momentum=False),
}


@dataclass(frozen=True)
class Decoder:
    """Shapes of a decoder with grouped keys and values, SwiGLU and an output layer of its own."""

    layers: int
    width: int
    feed_forward: int
    key_value: int
    vocabulary: int
    tokens: float  # per step

    def layer(self) -> list[tuple[int, ...]]:
        D, F, K = self.width, self.feed_forward, self.key_value
        return [(D, D), (K, D), (K, D), (D, D), (F, D), (F, D), (D, F), (D,), (D,)]

    def ends(self) -> list[tuple[int, ...]]:
        return [(self.vocabulary, self.width), (self.vocabulary, self.width), (self.width,)]

    def shapes(self) -> list[tuple[int, ...]]:
        return self.layers * self.layer() + self.ends()


MODELS = {
    "1B": Decoder(16, 2048, 8192, 512, 32_000, 1e6),
    "70B": Decoder(80, 8192, 28_672, 1024, 128_256, 4e6),
    "1T": Decoder(164, 24_576, 65_536, 1024, 128_256, 16e6),
}


def parameters(shapes: list[tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes)


def state_bytes(optimizer: str, shapes: list[tuple[int, ...]]) -> tuple[int, int]:
    """What the optimizer keeps after a step on tensors of these shapes: what `fully_shard` splits, and what not."""
    params = [nn.Parameter(torch.empty(shape, device="meta")) for shape in shapes]
    for p in params:
        p.grad = torch.empty_like(p)
    one = OPTIMIZERS[optimizer](params)
    one.step()
    kept = [(name, x.numel() * x.element_size()) for s in one.state.values() for name, x in s.items() if x.dim()]
    whole = sum(size for name, size in kept if name == "C")  # every GPU has the column sums of the whole matrix
    return sum(size for _, size in kept) - whole, whole


def extra_bytes(optimizer: str, shapes: list[tuple[int, ...]]) -> int:
    """What a sharded step sends for statistics of whole tensors, see the formula above."""
    if optimizer.startswith("AdamW"):
        return 0
    factored = [s for s in shapes if len(s) == 2 and min(s) >= 128] if optimizer.startswith("FAdafactor") else []
    return 8 * (len(shapes) + len(factored) + sum(columns for _, columns in factored)) + 8 * 2 * len(shapes)


def share(model: Decoder, count: int, sent: int, gpus: int) -> tuple[float, float]:
    """Seconds of the optimizer's own communication, and their share of the time of forward and backward."""
    seconds = (4 * math.ceil(math.log2(gpus)) * LATENCY + 2 * sent / BANDWIDTH) if sent else 0.0
    return seconds, seconds / (6 * count * model.tokens / (gpus * FLOPS))


def size_of(size: float) -> str:
    unit, name = (1e9, "GB") if size >= 1e9 else (1e6, "MB")
    return f"{size / unit:.0f} {name}" if size >= 100 * unit else f"{size / unit:.3g} {name}"


def percent(part: float) -> str:
    return f"{100 * part:.2g} %" if part >= 1e-5 else "< 0.001 %"


def lines() -> list[str]:
    head = " | ".join(f"{n} GPUs" for n in GPUS)
    out = [
        "# At scale: a paper exercise",
        "",
        "`python benchmarks/at_scale.py` says what is assumed, and computes it; nothing of this was run on these GPUs.",
        "",
        "Optimizer state per GPU, sharded over all of them (FAdafactor's column sums are on every GPU):",
        "",
        f"| | bytes/parameter | {head} |",
        "|---|--:|" + "--:|" * len(GPUS),
    ]
    counts = {name: parameters(model.shapes()) for name, model in MODELS.items()}
    for name, model in MODELS.items():
        for optimizer in OPTIMIZERS:
            # the layers are alike: one is stepped, and counted as often as it occurs
            layer, ends = state_bytes(optimizer, model.layer()), state_bytes(optimizer, model.ends())
            split, whole = (model.layers * a + b for a, b in zip(layer, ends, strict=True))
            cells = " | ".join(size_of(split / n + whole) for n in GPUS)
            out.append(f"| {name}, {optimizer} | {(split + whole) / counts[name]:.3f} | {cells} |")
    out += [
        "",
        "The optimizer's own communication (AdamW: none), whatever the dtype of the state: time, and its share of the",
        f"time of forward and backward alone at {FLOPS / 1e12:.0f} TFLOP/s per GPU. Assumed are {LATENCY * 1e6:.0f} µs "
        f"per hop and {BANDWIDTH / 1e9:.0f} GB/s.",
        "",
        f"| | parameters | tokens per step | tensors | KB per step | {head} |",
        "|---|--:|--:|--:|--:|" + "--:|" * len(GPUS),
    ]
    for name, model in MODELS.items():
        for optimizer in ("FAdam", "FAdafactor"):
            sent = extra_bytes(optimizer, model.shapes())
            times = [share(model, counts[name], sent, n) for n in GPUS]
            cells = " | ".join(f"{seconds * 1e3:.2f} ms, {percent(part)}" for seconds, part in times)
            size = f"{counts[name] / 1e9:.1f} G | {model.tokens / 1e6:g} M | {len(model.shapes())} | {sent / 1e3:.0f}"
            out.append(f"| {name}, {optimizer} | {size} | {cells} |")
    return out


if __name__ == "__main__":
    text = "\n".join(lines()) + "\n"
    print(text)
    RESULT.write_text(text, encoding="utf-8")
