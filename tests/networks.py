"""What several test files share: random images, random networks, and a network that notices what is done to it."""

import math
from itertools import pairwise

import torch
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor, nn

SEEDS = st.integers(0, 2**31)


def cases(n: int) -> settings:
    """Return hypothesis settings: `n` cases, the same ones in every run, however slow the machine is."""
    return settings(max_examples=n, deadline=None, derandomize=True, database=None)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_images(n: int, shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    """Return images of which about a third of the pixels are exactly black or white, where the box binds."""
    x = torch.rand(n, *shape, generator=generator, dtype=dtype)
    kind = torch.randint(6, x.shape, generator=generator)
    return x.masked_fill(kind == 0, 0).masked_fill(kind == 1, 1)


def random_network(
    shape: tuple[int, ...], classes: int, dtype: torch.dtype, generator: torch.Generator, hidden: int = 5
) -> nn.Sequential:
    """Return a small network with random weights; a linear model if `hidden` is 0."""
    size = math.prod(shape)
    widths = [size, hidden, classes] if hidden else [size, classes]
    layers: list[nn.Module] = [nn.Flatten()]
    for i, (a, b) in enumerate(pairwise(widths)):
        layer = nn.Linear(a, b, dtype=dtype)
        layer.weight.data = torch.randn(b, a, generator=generator, dtype=dtype)
        layer.bias.data = torch.randn(b, generator=generator, dtype=dtype)
        layers += [nn.Tanh(), layer] if i else [layer]
    return nn.Sequential(*layers)


class Probe(nn.Module):
    """A network with everything that a caller could disturb; raises, or returns NaN, at a chosen call."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)
        )
        self.calls, self.modes, self.frozen = 0, set(), set()
        self.raise_at = self.nan_at = None

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.modes.add(tuple(module.training for module in self.modules()))
        self.frozen.add(not any(p.requires_grad for p in self.parameters()))
        if self.calls == self.raise_at:
            raise RuntimeError("broken pipe")
        logits = self.layers(x)
        return logits * torch.nan if self.calls == self.nan_at else logits


PROBE_X = torch.rand(2, 1, 4, 4, generator=rng(5))
PROBE_Y = torch.tensor([0, 2])


def probe() -> Probe:
    """Return a `Probe` whose modes, `requires_grad` and `.grad` are all mixed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Probe().train()
    model.layers[1].eval()
    model.layers[3].eval()
    model.layers[0].weight.requires_grad_(False)
    model.layers[5].weight.grad = torch.randn(3, 64, generator=rng(1))
    return model


def snapshot(model: Probe) -> dict:
    return {
        "modes": [module.training for module in model.modules()],
        "state": {name: value.clone() for name, value in model.state_dict().items()},
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "grad": [None if p.grad is None else (id(p.grad), p.grad.clone()) for p in model.parameters()],
        "hooks": [len(module._forward_hooks) for module in model.modules()],
    }


def same(a, b) -> bool:
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
