"""Our bounds beside bound-propagation and HiGHS: tightness and time on the same digits. `make bench` calls this.

It rewrites what stands between the marks "bounds" of book/comparison.md. On one core it takes some minutes.
"""

import argparse
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import page
import torch
from torch import Tensor, nn
from tqdm import tqdm

from helpers.attacks import pgd
from helpers.bounds import pieces, upper_margins
from helpers.data import digits
from helpers.exact import decide, milp_margin
from helpers.training import book_network

ROOT = Path(__file__).parents[1]
METHODS = {"interval": "intervals", "crown-ibp": "CROWN-IBP", "crown": "CROWN"}


def clock(run: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """Return the result of `run()` and how many CPU seconds it took."""
    begin = time.process_time()
    result = run()
    return result, time.process_time() - begin


def matrices(network: nn.Module, x: Tensor) -> nn.Sequential:
    """Return the network with a matrix for each affine part: bound-propagation has no convolution."""
    layers: list[nn.Module] = []
    for part in pieces(network):
        zero = torch.zeros_like(x[:1])
        bias = part(zero).flatten()
        linear = nn.Linear(zero.numel(), len(bias))
        weight = torch.autograd.functional.jacobian(lambda a, part=part: part(a).flatten(), zero)
        linear.weight.data, linear.bias.data = weight.reshape(len(bias), -1), bias.detach()
        layers += [linear, nn.ReLU()]
        x = part(zero)
    return nn.Sequential(*layers[:-1]).requires_grad_(False).eval()


def their_margins(network: nn.Sequential, x: Tensor, y: Tensor, eps: float, method: str, batch: int) -> Tensor:
    """Return bound-propagation's upper bounds of logits_k - logits_y, (N, K), the difference in the last matrix."""
    from bound_propagation import BoundModelFactory, HyperRectangle

    margins = torch.full((len(x), network[-1].out_features), -torch.inf)
    for label in y.unique().tolist():
        last = nn.Linear(network[-1].in_features, network[-1].out_features)
        last.weight.data = network[-1].weight - network[-1].weight[label]
        last.bias.data = network[-1].bias - network[-1].bias[label]
        bound = BoundModelFactory(adaptive_relu=True).build(nn.Sequential(*network[:-1], last).requires_grad_(False))
        for rows in (y == label).nonzero()[:, 0].split(batch):
            box = HyperRectangle((x[rows] - eps).clamp(min=0).flatten(1), (x[rows] + eps).clamp(max=1).flatten(1))
            call = {"interval": bound.ibp, "crown-ibp": bound.crown_ibp, "crown": bound.crown}[method]
            margins[rows] = call(box).concretize().upper
    return margins.scatter(1, y[:, None], -torch.inf)


def compare(network: nn.Module, x: Tensor, y: Tensor, eps: float, batch: int) -> list[list[str]]:
    """Return a row for each method: digits proved, mean bound and seconds, ours and theirs, and how they differ."""
    rows, linear = [], matrices(network, x)
    upper_margins(network, x[:2], y[:2], eps)  # to warm up
    their_margins(linear, x[:2], y[:2], eps, "crown", batch)
    for method, name in METHODS.items():
        ours, seconds = clock(lambda m=method: upper_margins(network, x, y, eps, method=m))
        with torch.no_grad():
            theirs, longer = clock(lambda m=method: their_margins(linear, x, y, eps, m, batch))
        finite = ours.isfinite()
        cells = []
        for bounds, spent in ((ours, seconds), (theirs, longer)):
            proved = int((bounds < 0).all(1).sum())
            cells += [f"{proved} of {len(x)}", f"{bounds[finite].mean():.3f}", f"{spent:.2f}"]
        rows.append([name, *cells, f"{(ours - theirs)[finite].min():.4f} to {(ours - theirs)[finite].max():.4f}"])
    alpha, seconds = clock(lambda: upper_margins(network, x, y, eps, method="alpha"))
    proved = f"{int((alpha < 0).all(1).sum())} of {len(x)}"
    rows.append(["optimised slopes", proved, f"{alpha[alpha.isfinite()].mean():.3f}", f"{seconds:.2f}", *[""] * 4])
    return rows


def exact(network: nn.Module, x: Tensor, y: Tensor, eps: float, limit: float) -> tuple[list[list[str]], str]:
    """Ask both exact methods about digits that CROWN leaves open. HiGHS is asked only about what CROWN leaves open."""
    rows, ours, theirs = [], 0.0, 0.0
    bounds = upper_margins(network, x, y, eps)
    for i in tqdm(range(len(x)), desc="HiGHS", leave=False):
        one = slice(i, i + 1)
        (found, spent) = clock(lambda one=one: decide(network, x[one], y[one], eps, attack=None, seconds=limit))
        verdict, asked, longer = "proved", 0, 0.0
        for k in (bounds[i] >= 0).nonzero()[:, 0].tolist():
            (answer, seconds) = clock(lambda one=one, k=k: milp_margin(network, x[one], y[one], eps, k, seconds=limit))
            asked, longer = asked + 1, longer + seconds
            if answer.verdict != "proved":
                verdict = answer.verdict
            if verdict == "broken":
                break
        ours, theirs = ours + spent, theirs + longer
        rows.append([f"{i + 1}", found.verdict[0], f"{spent:.2f}", verdict, f"{longer:.2f}", f"{asked}"])
    return rows, f"On these {len(x)} digits HiGHS took {theirs / ours:.0f} times as long as branch and bound."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few digits only, to see that it runs")
    parser.add_argument("--page", type=Path, default=ROOT / "book" / "comparison.md")
    arguments = parser.parse_args()
    many, few, hard, limit = (4, 2, 1, 2.0) if arguments.quick else (100, 20, 8, 60.0)
    torch.set_num_threads(1)
    data = digits()
    x, y = data.x_test[:100], data.y_test[:100]
    small, robust = book_network("small", "cpu"), book_network("robust", "cpu")
    version_ = f"bound-propagation {version('bound-propagation')}"
    header = [
        "",
        "proved",
        "mean bound",
        "seconds",
        f"{version_}: proved",
        "mean bound",
        "seconds",
        "ours minus theirs",
    ]
    blocks = [page._machine(page.machine("cpu"))]
    for name, network, n, eps, batch in (("small", small, many, 0.1, many), ("robust", robust, few, 0.05, 1)):
        rows = compare(network, x[:n], y[:n], eps, batch)
        blocks.append(f"**The {name} network, $\\epsilon = {eps}$, the first {n} test digits**")
        blocks.append(page._table(header, rows))
    with torch.no_grad():
        right = small(pgd(small, x, y, 0.1)).argmax(1) == y
    open_ = (right & (upper_margins(small, x, y, 0.1) >= 0).any(1)).nonzero()[:hard, 0]
    rows, words = exact(small, x[open_], y[open_], 0.1, limit)
    blocks.append(
        f"**Exact answers, the small network, $\\epsilon = 0.1$: the first {len(open_)} digits that neither PGD breaks "
        "nor CROWN proves**"
    )
    header = ["", "branch and bound", "seconds", f"HiGHS (SciPy {version('scipy')})", "seconds", "programs"]
    blocks += [page._table(header, rows), words]
    page.fill(arguments.page, {"bounds": "\n\n".join(blocks)})


if __name__ == "__main__":
    main()
