"""The checks of chapter 5."""

from collections.abc import Callable
from contextlib import ExitStack
from typing import NoReturn
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers.exercises._check import Case, _line, _report, check
from helpers.risk import linear_worst_margin


def check_trades_loss(loss: Callable[[Tensor, Tensor, Tensor, float], Tensor], solution: bool = False) -> None:
    """Exercise 5.1: `loss` takes clean and attacked logits (N, K), y (N,) and beta, and returns the mean loss, ()."""
    generator = torch.Generator().manual_seed(0)
    clean, attacked = torch.randn(2, 4, 3, generator=generator)
    far = torch.tensor([[120.0, 0.0, 0.0], [0.0, 60.0, 120.0]])  # softmax rounds to exact zeros
    y = torch.tensor([0, 1, 2, 0])
    plain, on_attacked = F.cross_entropy(clean, y), F.cross_entropy(attacked, y)
    apart = F.kl_div(attacked.log_softmax(1), clean.softmax(1), reduction="batchmean")
    swapped = F.kl_div(clean.log_softmax(1), attacked.softmax(1), reduction="batchmean")
    hint = "KL(p_clean || p_attacked) = sum over k of p_clean (log p_clean - log p_attacked), averaged over the batch."
    sums = "You summed over the batch; the mean is wanted, so that the loss does not grow with the batch."
    cases = [
        Case(
            (clean, attacked, y, 0.0),
            plain,
            "With beta = 0 it is the clean cross-entropy, averaged.",
            [
                (
                    on_attacked,
                    "With beta = 0 it is the cross-entropy on clean images; yours is on attacked ones.",
                ),
                (4 * plain, sums),
            ],
        ),
        Case((clean, clean, y, 6.0), plain, "When the attack changes nothing, the second term is 0."),
        Case(
            (clean, attacked, y, 6.0),
            plain + 6 * apart,
            hint,
            [
                (plain + 6 * swapped, "Yours is KL(p_attacked || p_clean): the two are swapped. " + hint),
                (plain - 6 * apart, "The sign: KL is never negative, and the loss should grow with it. " + hint),
                (plain + 6 * 4 * apart, "The second term: " + sums[0].lower() + sums[1:]),
                (
                    plain + 6 * apart / 3,
                    "Sum over the K classes, then average over the batch; yours averages over both "
                    '(F.kl_div\'s reduction="mean" does so, too).',
                ),
                (plain + apart, "beta is missing."),
            ],
        ),
        Case(
            (far, far.flip(1), y[:2], 1.0),
            F.cross_entropy(far, y[:2]) + F.kl_div(far.flip(1).log_softmax(1), far.softmax(1), reduction="batchmean"),
            "These logits are 120 apart: softmax then rounds a probability to 0, and log(0) is -inf. log_softmax never "
            "leaves the logarithm: use it for both, and its exp() for the weights.",
        ),
    ]
    told = "One term asks for right answers, the other for answers that stay; beta is the exchange."
    if check("5.1", loss, cases, told, solution=solution):
        trained = loss(clean.clone().requires_grad_(), attacked, y, 6.0)
        if not isinstance(trained, Tensor) or not trained.requires_grad:
            print("One more thing: to train with it, the loss has to keep its gradient: no item(), no detach().")


def check_danskin(gradient: Callable[[Tensor, Tensor, Tensor, float], Tensor], solution: bool = False) -> None:
    """Exercise 5.2: `gradient` takes w (d,), x (d,), s () and eps, returns the worst loss's gradient in w, (d,)."""
    generator = torch.Generator().manual_seed(0)
    w, x = torch.randn(5, generator=generator), torch.rand(5, generator=generator)
    hint = "Danskin: put the worst delta, -s eps sign(w), in first; then differentiate in w with delta held fixed."
    cases = []
    for s, eps in ((1.0, 0.0), (1.0, 0.1), (-1.0, 0.3)):
        linear = nn.Linear(5, 2, bias=False)
        linear.weight.data = torch.stack([torch.zeros(5), w])
        y = torch.tensor([int(s > 0)])
        # The worst margin of the wrong class over the right one, without the box; its sigmoid is the loss's slope.
        slope = torch.sigmoid(linear_worst_margin(linear, x[None], y, eps, box=False).detach())
        x_adv = x - s * eps * w.sign()
        expected = -s * slope * x_adv
        mistakes = [
            (-s * x_adv, "The outer derivative is missing: that of log(1 + exp(u)), the sigmoid of u."),
            (-slope * x_adv, "A factor s is missing: the derivative of u = -s w . (x + delta) in w."),
            (-s * (1 - slope) * x_adv, "The sigmoid is taken at u = -s w . (x + delta); yours is taken at -u."),
            (-expected, "The sign: the derivative of u = -s w . (x + delta) in w has a factor -s."),
        ]
        if eps:
            mistakes += [
                (
                    -s * slope * x,
                    "The derivative of u = -s w . (x + delta) in w is -s (x + delta), not -s x.",
                ),
                (-s * torch.sigmoid(-s * (w @ x)) * x, "This is the gradient at x itself, with no adversary. " + hint),
            ]
        cases.append(Case((w, x, torch.tensor(s), eps), expected, hint, mistakes))
    with ExitStack() as without:
        for way in ("torch.autograd.grad", "torch.autograd.backward", "torch.func.grad"):
            without.enter_context(patch(way, _by_hand))
        check("5.2", gradient, cases, "You never had to differentiate the maximiser.", solution=solution)


def _by_hand(*_: object, **__: object) -> NoReturn:
    raise RuntimeError("no autograd in this exercise: write the gradient as a formula in w, x, s and eps.")


Step = Callable[[nn.Module, torch.optim.Optimizer, Tensor, Tensor, Callable[..., Tensor], float], object]


def check_robust_step(robust_step: Step, solution: bool = False) -> None:
    """Exercise 5.3: `robust_step` takes (network, optimizer, x, y, attack, eps) and makes one step of training."""
    told = "In a loop over shuffled batches, this is adversarial training."
    _report("5.3", _trouble_of_step(robust_step), told, solution)


def _trouble_of_step(robust_step: Step) -> str:
    """Return what is wrong with a step of training, or an empty string."""
    if not callable(robust_step):
        return "give the check your function itself, without calling it: its name and no parentheses after it."
    generator = torch.Generator().manual_seed(0)
    x, y, eps, lr = torch.rand(4, 5, generator=generator), torch.tensor([0, 1, 2, 0]), 0.2, 0.5
    network = nn.Linear(5, 3)
    start = torch.randn(3, 5, generator=generator)
    network.load_state_dict({"weight": start, "bias": torch.zeros(3)})
    stale = torch.ones(3, 5)
    network.weight.grad = stale.clone()  # what the step before has left
    seen = []

    def attack(model: nn.Module, x: Tensor, y: Tensor, eps: float) -> Tensor:
        seen.append((model.weight.detach().clone(), eps))
        return (x + eps * (1 - 2 * x)).detach()

    def slope(images: Tensor) -> Tensor:
        weight = start.clone().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(images @ weight.T, y), weight)[0]

    try:
        robust_step(network, torch.optim.SGD(network.parameters(), lr=lr), x, y, attack, eps)
    except Exception as error:  # whatever the reader's code raises is shown to the reader
        return f"your function raised {type(error).__name__}{_line(robust_step, error)}: {error}"
    on_attacked, on_clean = slope(x + eps * (1 - 2 * x)), slope(x)
    moved = (start - network.weight.detach()) / lr  # the gradient that was followed
    if torch.equal(moved, torch.zeros(3, 5)):
        return "no weight has changed. In this order: zero_grad(), backward() on the loss, step()."
    if not seen:
        return "the attack was not called: attack(network, x, y, eps) returns the images to learn from."
    if not torch.equal(seen[0][0], start):
        return "the weights had changed before the attack ran. It has to attack the weights of this step."
    if seen[0][1] != eps:
        return f"the attack was called with eps = {seen[0][1]}; hand it the eps that you were given, {eps}."
    mistakes = [
        (on_clean, "The step goes down the loss of the clean images: take it at the attacked ones."),
        (on_attacked + stale, "Gradients of an earlier step are in there: optimizer.zero_grad() before backward()."),
        (on_clean + stale, "Clean images, and gradients of an earlier step: attack first, then zero_grad()."),
        (stale, "The step was made with the gradients of an earlier step: backward() comes before step()."),
        (on_attacked + on_clean, "Clean images are in the loss as well: that is another method, for another problem."),
        ((on_attacked + on_clean) / 2, "Half of the loss is on clean images: another method, for another problem."),
        (-on_attacked, "The step goes uphill. That is the inner player's part; the outer one goes down."),
        (4 * on_attacked, "You summed over the batch; the mean is wanted, so that a step does not grow with it."),
    ]
    if torch.allclose(moved, on_attacked, atol=1e-5):
        return ""
    hint = "Attack the batch, then one step down the mean cross-entropy at the attacked images."
    return next((told for wrong, told in mistakes if torch.allclose(moved, wrong, atol=1e-5)), hint)
