"""Exact answers: is there a perturbation that fools the network, yes or no? With a witness, or a proof.

Branch and bound asks for an upper bound of the margin. Where it is not good enough, the problem is split in two at one
ReLU: in one half its input is at least 0, in the other at most 0, and in both that ReLU is linear. So the bounds get
tighter from node to node of a tree (Bunel et al. 2020). A split enters CROWN's backward pass as a multiplier (Wang et
al. 2021). The same question as a mixed-integer program, for SciPy's HiGHS, is `milp_margin` (Tjeng et al. 2019).
"""

import heapq
import math
import time
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from itertools import count
from typing import Literal, NamedTuple

import numpy as np
import torch
from scipy import optimize, sparse
from torch import Tensor, nn
from torch.func import jacrev, vjp, vmap

from helpers._validation import check_classes, check_count, check_images, check_labels, check_logits, check_number
from helpers.attacks import frozen, margin, pgd
from helpers.bounds import BLOCK, add_up, box, hidden_layers, pieces, rounding
from helpers.perturbations import Linf
from helpers.risk import Attack

Verdict = Literal["proved", "broken", "unknown"]
SPLIT = -0.5  # where a ReLU is split its gap is -1, else at least 0, up to rounding
ROOM = 1e-6  # more than HiGHS' tolerance of 1e-7, within which it may break a condition


@dataclass(frozen=True)
class Decisions:
    """What is known about each image: one of three verdicts, and what it rests on."""

    verdict: list[Verdict]  # proved: no perturbation fools the network; broken: x_adv does; unknown: neither was found
    x_adv: Tensor  # like x: the witness of a broken image; of the others the point of highest margin that was seen
    lower: Tensor  # (N,), the margin at x_adv: the largest margin is at least that
    upper: Tensor  # (N,), what the largest margin is proved to be at most; infinity where no bound was computed
    nodes: Tensor  # (N,), int64, how many nodes were bounded; 0 where the network itself or the attack decided
    seconds: Tensor  # (N,), the wall time of bounding and splitting

    @property
    def proved(self) -> Tensor:
        """(N,), bool."""
        return torch.tensor([verdict == "proved" for verdict in self.verdict])

    @property
    def broken(self) -> Tensor:
        """(N,), bool."""
        return torch.tensor([verdict == "broken" for verdict in self.verdict])


class Look(NamedTuple):
    """What is known about one image after a batch of nodes."""

    image: int  # which of the N
    nodes: int  # bounded so far
    waiting: int  # still to be split
    upper: float  # the largest margin is at most that
    lower: float  # and at least that


def decide(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    *,
    seconds: float = 20.0,
    attack: Attack | None = pgd,
    tolerance: float | None = None,
    batch: int = 64,
    steps: int = 4,
    tries: int = 4,
    trace: list[Look] | None = None,
) -> Decisions:
    """Decide for each image whether some l-inf perturbation within `eps` makes the network say another class than `y`.

    First the network is asked about x itself; then the attack is run on all that it reads right; then branch and bound
    on what is left, one image after the other.

    "broken" has a witness in Delta(x), on which the network was run. "proved" means that an upper bound of the margin,
    with room for rounding, is below 0. All else is "unknown": the time limit, an interrupt (what is decided is kept), a
    margin so near to 0 that rounding hides its sign, a tie that the network calls `y`.

    Args:
        network: as in `bounds.pieces`, in eval mode; takes images like `x`, returns logits (N, K).
        x: (N, ...), float32 or float64 as the network is, values in [0, 1]. y: (N,), int64, 0 to K - 1.
        eps: the budget, in pixel units from 0 to 1.
        seconds: wall time for each image, at least 0; with 0 only the network and the attack are asked.
        attack: function of (model, x, y, eps) that returns adversarial images, or None.
        tolerance: if given, do not stop at the sign: go on, also with images that are broken, until the largest margin
            is known to this accuracy, `upper` - `lower`.
        batch: how many nodes are split at a time. steps: of optimising the slopes and multipliers of each node.
        tries: how many ReLUs each node considers for its split; the one with the best halves is taken.
        trace: a list, to which a `Look` is appended after each batch of nodes.

    Returns:
        The decisions.

    Raises:
        TypeError, ValueError: an argument is not allowed, or the network has a layer without a bound.
    """
    check_images(x)
    check_labels(y, x)
    allowed = Linf(eps)
    check_number(eps, "eps", low=0, high=1)
    check_number(seconds, "seconds", low=0, high=float("inf"))
    check_count(batch, "batch")
    check_count(steps, "steps", low=0)
    check_count(tries, "tries")
    if tolerance is not None:
        check_number(tolerance, "tolerance", low=0, high=float("inf"), open_low=True)
    parts = pieces(network)
    with frozen(network), torch.no_grad():
        logits = network(x)
        check_logits(logits, len(x))
        check_classes(y, logits.shape[1])
        x_adv, lower, wrong = x.clone(), margin(logits, y), logits.argmax(1) != y
        upper = torch.full_like(lower, torch.inf)
        nodes, spent = torch.zeros_like(y), torch.zeros(len(x), dtype=torch.float64)
        try:
            if attack is not None and not wrong.all():
                right = (~wrong).nonzero()[:, 0]
                delta = allowed.project(attack(network, x[right], y[right], eps) - x[right], x[right])
                x_adv[right] += delta
                said = network(x_adv[right])
                lower[right], wrong[right] = margin(said, y[right]), said.argmax(1) != y[right]
            for i in range(len(x)):
                begin = time.perf_counter()
                if seconds == 0 or (wrong[i] and tolerance is None):
                    continue
                one = slice(i, i + 1)
                how = tolerance, batch, steps, tries
                for look, point in _search(network, parts, x[one], y[one], eps, lower[i], *how):
                    nodes[i], upper[i], spent[i] = look.nodes, look.upper, time.perf_counter() - begin
                    if point is not None:
                        x_adv[one], lower[i], wrong[i] = point, look.lower, network(point).argmax(1) != y[one]
                    if trace is not None:
                        trace.append(look._replace(image=i))
                    if spent[i] > seconds or (wrong[i] and tolerance is None):
                        break
        except KeyboardInterrupt:
            print(f"Interrupted. Decided: {int((wrong | (upper < 0)).sum())} of {len(x)} images.")
    verdict = ["broken" if w else "proved" if u < 0 else "unknown" for w, u in zip(wrong, upper, strict=True)]
    return Decisions(verdict, x_adv, lower, upper, nodes, spent)


# ------------------------------------------------------------------------------------------- the tree, best bound first


def _search(network, parts, x, y, eps, lower, tolerance, batch, steps, tries) -> Iterator[tuple[Look, Tensor | None]]:
    """Yield, after each batch of nodes, what is known of one image, and the best point if it is a new one."""
    relaxed, allowed = Relaxed(parts, *box(x, eps)), Linf(eps)
    unit = torch.eye(relaxed.classes, dtype=x.dtype, device=x.device)
    targets = unit[torch.arange(len(unit), device=x.device) != y] - unit[y]  # a row for each wrong class
    lower, closed, nodes, numbers = float(lower), -torch.inf, 0, count()
    floor = 0.0 if tolerance is None else lower + tolerance  # what is below it is closed
    rows, (multipliers, signs) = targets, relaxed.start(len(targets))
    above = rows.new_full((len(rows),), torch.inf)
    heap: list[tuple] = []  # (minus the bound, number, row, multipliers, signs, gaps)
    while True:
        bounds, multipliers, points, gaps = relaxed.bound(
            rows, multipliers, signs, steps if nodes else 4 * steps, floor
        )
        whole = (gaps > SPLIT).any(1)  # can be split
        for i in (~whole).nonzero()[:, 0].tolist():
            if bounds[i] >= 0 or tolerance is not None:  # a linear program is left
                bounds[i], points[i] = relaxed.solve(rows[i], signs[i], bounds[i], points[i])
        bounds = bounds.minimum(above)  # a half is part of the whole
        nodes += len(rows)
        points = x + allowed.project(points - x, x)
        margins = margin(network(points), y.expand(len(points)))
        best = int(margins.argmax())
        better = points[best : best + 1] if margins[best] > lower else None
        lower = max(lower, float(margins[best]))
        floor = 0.0 if tolerance is None else lower + tolerance
        for i, bound in enumerate(bounds.tolist()):
            if bound < floor or not whole[i]:
                closed = max(closed, bound)
            else:
                node = rows[i], multipliers[i].clone(), signs[i].clone(), gaps[i].clone()
                heapq.heappush(heap, (-bound, next(numbers), *node))
        upper = max(closed, -heap[0][0] if heap else -torch.inf)
        yield Look(0, nodes, len(heap), upper, lower), better
        if upper < floor or not heap:
            return
        some = [heapq.heappop(heap) for _ in range(min(batch, len(heap)))]
        above = rows.new_tensor([-node[0] for node in some]).repeat(2)
        rows, multipliers, signs, gaps = (torch.stack(part) for part in list(zip(*some, strict=True))[2:])
        neuron = relaxed.choose(rows, multipliers, signs, gaps, tries)[:, None]
        rows, multipliers = rows.repeat(2, 1), multipliers.scatter(1, neuron, 0).repeat(2, 1)
        signs = torch.cat([signs.scatter(1, neuron, 1), signs.scatter(1, neuron, -1)])


class Lines(NamedTuple):
    """What stands for the unstable ReLUs of a layer in a backward pass: each (B, as many as there are)."""

    own: Tensor  # the coefficient of the ReLU's output
    line: Tensor  # the slope of the line that was taken
    height: Tensor  # and its value at 0


class Relaxed:
    """The network around one image, each unstable ReLU between two lines, and what is known of its input's sign.

    Args:
        parts: the affine parts, as `bounds.pieces` returns them. low, high: (1, ...), the range of each pixel.
    """

    def __init__(self, parts: list[nn.Module], low: Tensor, high: Tensor) -> None:
        *hidden, logits = self.layers = hidden_layers(parts, low, high)
        self.parts, self.low, self.high, self.classes = parts, low, high, logits.low.shape[1]
        self.unstable = [((layer.low < 0) & (layer.high > 0)).flatten().nonzero()[:, 0] for layer in hidden]
        self.ends = [
            (layer.low.flatten()[which], layer.high.flatten()[which])
            for layer, which in zip(hidden, self.unstable, strict=True)
        ]
        self.on = [(layer.low >= 0).flatten().to(low) for layer in hidden]  # the ReLUs that are always the identity
        self.sizes = [len(which) for which in self.unstable]
        inputs = [low, *(layer.low for layer in hidden)]
        self.steps_back = [vjp(part, torch.zeros_like(like)) for part, like in zip(parts, inputs, strict=True)]

    def start(self, n: int) -> tuple[Tensor, Tensor]:
        """Return CROWN's slopes, (n, U), one for each of the U unstable ReLUs, and signs (n, U), all of them 0."""
        steep = [(high > -low).to(low) for low, high in self.ends]
        slopes = torch.cat([*steep, self.low.new_zeros(0)]).repeat(n, 1)
        return slopes, torch.zeros_like(slopes, dtype=torch.int8)

    def backward(self, rows: Tensor, multipliers: Tensor, signs: Tensor) -> tuple[Tensor, Tensor, list[Lines], Tensor]:
        """Return the bounds (B,), the points (B, ...) where they are reached, the lines of each ReLU layer, and the
        room for rounding (B,) that is in the bounds already, as in `helpers.bounds`.

        Args:
            rows: (B, K). multipliers: (B, U), for each unstable ReLU the slope of its lower line; where it is split,
                the multiplier of "its input has this sign". signs: (B, U), 1 or -1 where it is split, else 0.
        """
        # By layers from here on: tuples of the columns that belong to each.
        free, sign = ((signs == 0).split(self.sizes, 1), signs.to(rows).split(self.sizes, 1))
        value = multipliers.split(self.sizes, 1)
        coefficients, total, room, lines = rows, 0.0, 0.0, []
        for i in reversed(range(len(self.parts))):
            bias, pull = self.steps_back[i]
            room = room + coefficients.abs().flatten(1) @ self.layers[i].room.flatten()
            total = total + add_up(coefficients * bias)
            coefficients = vmap(lambda row, pull=pull: pull(row)[0])(coefficients[:, None])[:, 0]
            if i > 0:
                flat, (low, high) = coefficients.flatten(1), self.ends[i - 1]
                own, slope = flat[:, self.unstable[i - 1]], high / (high - low)
                line = torch.where(own > 0, slope, value[i - 1]).where(free[i - 1], sign[i - 1].clamp(min=0))
                height = torch.where(free[i - 1] & (own > 0), -slope * low, 0.0)
                total = total + add_up(own * height)
                flat = flat * self.on[i - 1]
                flat[:, self.unstable[i - 1]] = own * line + sign[i - 1] * value[i - 1]
                coefficients = flat.view_as(coefficients)
                lines.append(Lines(own, line, height))
        points = torch.where(coefficients > 0, self.high, self.low)
        terms = BLOCK + points.shape[1:].numel() // BLOCK
        room = room + rounding(terms, points.dtype) * add_up(coefficients.abs() * points)
        bounds = total + add_up(coefficients * points)
        return bounds + room, points, lines[::-1], room

    def bound(
        self, rows: Tensor, multipliers: Tensor, signs: Tensor, steps: int, floor: float = -math.inf, lr: float = 0.25
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return upper bounds of <row, logits> for nodes of the tree, after `steps` steps of Adam on the multipliers.

        Any slopes from 0 to 1 and any multipliers of at least 0 give a bound. The derivative of the bound needs no
        autograd: it is the input of the neuron, times its coefficient, where the *relaxed* network is at its maximum.

        Args:
            rows, multipliers, signs: as in `backward`.

        Returns:
            The bounds (B,); the multipliers they came from; the points (B, ...) where the relaxed networks are at their
            maximum; and by how much each unstable ReLU cheats there, (B, U), -1 where it is split.
        """
        values, best = multipliers.clone(), torch.full_like(rows[:, 0], torch.inf)
        adam, split = torch.optim.Adam([values], lr=lr), signs != 0
        free, sign = ((~split).split(self.sizes, 1), signs.to(rows).split(self.sizes, 1))
        for step in range(steps + 1):
            bounds, points, lines, _ = self.backward(rows, values, signs)
            better = bounds < best
            best = torch.where(better, bounds, best)
            multipliers = torch.where(better[:, None], values, multipliers)
            # Forwards, from the point where that is largest, through the lines that were used.
            state, grads, gaps = points, [torch.zeros_like(values[:, :0])], [torch.zeros_like(values[:, :0])]
            for i, (own, line, height) in enumerate(lines):
                inputs = self.parts[i](state)
                flat = inputs.flatten(1)
                at = flat[:, self.unstable[i]]
                outputs = line * at + height
                grads.append(torch.where(free[i], own.clamp(max=0), sign[i]) * at)
                gaps.append(torch.where(free[i], own * (outputs - at.relu()), -1.0))
                flat = flat * self.on[i]
                flat[:, self.unstable[i]] = outputs
                state = flat.view_as(inputs)
            if bool((best < floor).all()):
                break
            if step < steps and values.shape[1]:
                values.grad = torch.cat(grads, 1)
                adam.step()
                values.clamp_(min=0)
                values.copy_(torch.where(split, values, values.clamp(max=1)))
        return best, multipliers, points, torch.cat(gaps, 1)

    def choose(self, rows: Tensor, multipliers: Tensor, signs: Tensor, gaps: Tensor, tries: int) -> Tensor:
        """Return the unstable ReLU (B,) to split in each node; there must be one.

        Of the `tries` that cheat most, by `gaps` as `bound` returns them, it is the one whose two halves, with the
        multipliers as they are, have the smallest sum of bounds, where a half below 0 counts as 0.
        """
        gap, neurons = gaps.topk(min(tries, gaps.shape[1]), 1)
        n, each = neurons.shape
        some = neurons.reshape(-1, 1)
        signs, values = signs.repeat_interleave(each, 0), multipliers.repeat_interleave(each, 0).scatter(1, some, 0)
        halves = torch.cat([signs.scatter(1, some, sign) for sign in (1, -1)])
        bounds, *_ = self.backward(rows.repeat_interleave(each, 0).repeat(2, 1), values.repeat(2, 1), halves)
        total = bounds.clamp(min=0).view(2, n, each).sum(0).masked_fill(gap <= SPLIT, torch.inf)
        return neurons.gather(1, total.argmin(1, keepdim=True))[:, 0]

    def solve(self, row: Tensor, signs: Tensor, bound: Tensor, point: Tensor) -> tuple[float, Tensor]:
        """Return the largest <row, logits> and where it is if every unstable ReLU is split: a linear program (HiGHS).

        The conditions get `ROOM` more than they ask for, and the result as well, so that the solver's own tolerance
        cannot hide a point; the result also gets room for rounding, since the network computes in its own precision.
        Where the solver fails, what was known, `bound` and `point`, is returned.
        """
        *_, room = self.backward(row[None], torch.zeros_like(signs[None]).to(row), signs[None])
        is_on = (signs > 0).double().split(self.sizes)
        parts = [deepcopy(part).double() for part in self.parts]

        def affine(image: Tensor) -> Tensor:
            outputs, state = [], image
            for i, part in enumerate(parts[:-1]):
                inputs = part(state)
                at = inputs.flatten()[self.unstable[i]]
                outputs.append(at)
                flat = (inputs.flatten() * self.on[i]).index_put((self.unstable[i],), is_on[i] * at)
                state = flat.view_as(inputs)
            return torch.cat([*outputs, parts[-1](state) @ row.double()])

        zero = torch.zeros_like(self.low, dtype=torch.float64)
        slopes, heights = jacrev(affine)(zero).flatten(1), affine(zero)
        sides = signs.double()
        with suppress(Exception):  # whatever goes wrong in the solver, the bound that is there stays
            result = optimize.linprog(
                -slopes[-1].numpy(force=True),
                A_ub=-(sides[:, None] * slopes[:-1]).numpy(force=True),
                b_ub=(sides * heights[:-1]).numpy(force=True) + ROOM,
                bounds=torch.stack([self.low.flatten(), self.high.flatten()], 1).numpy(force=True),
            )
            if result.status == 2:  # no point has these signs
                return -math.inf, point
            if result.status == 0:
                best = torch.as_tensor(result.x).to(point).view_as(point)
                return min(float(bound), float(heights[-1]) - result.fun + ROOM + float(room)), best
        return float(bound), point


# ------------------------------------------------------------------------------------------------ for a general solver


class Solution(NamedTuple):
    """What the solver says about the largest margin towards one class."""

    verdict: Verdict  # broken: x_adv fools the network; proved: upper is below 0; unknown: see `message`
    lower: float  # the margin towards the class at x_adv; minus infinity without one
    upper: float  # the largest margin is at most that; infinity if the solver has no bound
    x_adv: Tensor | None  # (1, ...), the best point that the solver found
    seconds: float  # the solver's wall time
    message: str  # in its own words


def milp_margin(
    network: nn.Module,
    x: Tensor,
    y: Tensor,
    eps: float,
    k: int,
    *,
    seconds: float = 60.0,
    bounds: Literal["crown", "interval"] = "crown",
) -> Solution:
    """Maximise logits_k - logits_y over Delta(x) as a mixed-integer linear program, by SciPy's HiGHS.

    Each unstable ReLU a = max(z, 0) with l <= z <= u becomes, with a variable d that is 0 or 1 (Tjeng et al. 2019),
    a >= 0, a >= z, a <= u d, a <= z - l (1 - d).

    Args:
        network: as in `bounds.pieces`. x: (1, ...), y: (1,), k: the other class. eps: the l-inf budget, 0 to 1.
        seconds: the solver's time limit.
        bounds: where l and u come from: "crown", or "interval", with which the same program takes longer.

    Returns:
        The solution. If the solver is missing, fails or runs out of time, the verdict is "unknown", unless what it
        found by then decides, and `message` says why.

    Raises:
        TypeError, ValueError: an argument is not allowed, or the network has a layer without a bound.
    """
    check_images(x)
    check_labels(y, x)
    if len(x) != 1:
        raise ValueError(f"x must be one image, (1, ...); got {len(x)}. One of them: x[3:4], y[3:4].")
    check_number(eps, "eps", low=0, high=1)
    check_number(seconds, "seconds", low=0, high=math.inf)
    if bounds not in ("crown", "interval"):
        raise ValueError(f"bounds must be 'crown' or 'interval'; got {bounds!r}")
    parts = pieces(network)
    low, high = box(x, eps)
    with frozen(network), torch.no_grad():
        logits = network(x)
        check_logits(logits, 1)
        check_count(k, "k", low=0, high=logits.shape[1] - 1)
        check_classes(y, logits.shape[1])
        if k == y:
            raise ValueError(f"k must be another class than y; both are {k}")
        hidden = hidden_layers(parts, low, high, crown=bounds == "crown")[:-1]
        program, constant = _program(parts, low, high, hidden, int(y), k)
        relaxed = Relaxed(parts, low, high)
        row = torch.eye(relaxed.classes, dtype=x.dtype, device=x.device)[[k]]
        row[0, y] = -1
        room = ROOM + float(relaxed.backward(row, *relaxed.start(1))[3])  # for the solver's tolerance, and for rounding
        begin = time.perf_counter()
        try:
            result = optimize.milp(**program, options={"time_limit": seconds})
        except Exception as error:
            spent = time.perf_counter() - begin
            return Solution("unknown", -math.inf, math.inf, None, spent, f"{type(error).__name__}: {error}")
        spent = time.perf_counter() - begin
        best, lower, broken = None, -math.inf, False
        bound = getattr(result, "mip_dual_bound", None)
        if bound is None and result.status == 0:  # without an unstable ReLU it is a linear program, solved
            bound = result.fun
        upper = math.inf if bound is None or not math.isfinite(bound) else constant - bound
        if result.x is not None:
            delta = torch.as_tensor(result.x[: x.numel()]).to(x).view_as(x) - x
            best = x + Linf(eps).project(delta, x)
            said = network(best)
            lower, broken = float(said[0, k] - said[0, y]), bool(said.argmax(1) != y)
        verdict = "broken" if broken else "proved" if upper + room < 0 else "unknown"
        return Solution(verdict, lower, upper, best, spent, result.message)


def _program(parts, low, high, hidden, y, k) -> tuple[dict, float]:
    """Return the arguments of `scipy.optimize.milp`, and what is to be added to minus its minimum.

    Variables: the pixels, then of each ReLU layer the outputs a and the switches d of the unstable ones.
    """
    ranges, integral = [(low.flatten().double().cpu(), high.flatten().double().cpu())], [torch.zeros(low.numel())]
    blocks, like, before, first = [], low, 0, low.numel()  # where the variables begin that a part takes, and its own
    for part, layer in zip(parts[:-1], hidden, strict=True):
        weight, bias = _matrix(part, like)
        least, most = layer.low.flatten().double().cpu(), layer.high.flatten().double().cpu()
        unstable, on = ((least < 0) & (most > 0)).nonzero()[:, 0], (least >= 0).nonzero()[:, 0]
        switch, like = first + len(least) + torch.arange(len(unstable)), layer.low
        ranges.append((torch.zeros_like(least), most.clamp(min=0)))
        ranges.append((torch.zeros(len(unstable)), torch.ones(len(unstable))))
        integral += [torch.zeros(len(least)), torch.ones(len(unstable))]
        # Coefficients of W a_before, a and d, then the range of their sum: a = z; a >= z; a - l d <= z - l; a <= u d.
        none, never = bias.new_zeros(len(unstable)), bias.new_full((len(unstable),), -torch.inf)
        below = least[unstable], most[unstable], bias[unstable]
        blocks += [
            (-weight[on], before, first + on, None, None, bias[on], bias[on]),
            (-weight[unstable], before, first + unstable, None, None, below[2], -never),
            (-weight[unstable], before, first + unstable, switch, -below[0], never, below[2] - below[0]),
            (0 * weight[unstable], before, first + unstable, switch, -below[1], never, none),
        ]
        before, first = first, first + len(least) + len(unstable)
    weight, bias = _matrix(parts[-1], like)
    cost = np.zeros(first)
    cost[before : before + weight.shape[1]] = weight[y] - weight[k]
    constraints = []
    for weight, start, own, switch, factor, least, most in blocks:
        matrix = np.zeros((len(own), first))
        matrix[:, start : start + weight.shape[1]] = weight
        matrix[range(len(own)), own] = 1
        if switch is not None:
            matrix[range(len(own)), switch] = factor
        constraints.append(optimize.LinearConstraint(sparse.csr_array(matrix), least.numpy(), most.numpy()))
    least, most = (torch.cat(ends).numpy() for ends in zip(*ranges, strict=True))
    program = {"c": cost, "constraints": constraints, "bounds": optimize.Bounds(least, most)}
    return program | {"integrality": torch.cat(integral).numpy()}, float(bias[k] - bias[y])


def _matrix(part: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight (outputs, inputs) and the bias of an affine part, in float64, on the CPU."""
    part, zero = deepcopy(part).double().cpu(), torch.zeros(like[:1].shape, dtype=torch.float64)
    bias = part(zero).flatten()
    return jacrev(lambda image: part(image).flatten())(zero).flatten(1), bias
