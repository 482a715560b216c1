"""The same attack in the words of each library: l-inf or l2 PGD from x itself, with a fixed step, on the cross-entropy.

Every function takes what `helpers.attacks.pgd` takes and returns adversarial images, so that they can stand in for each
other. What a library needs first, such as a wrapper around the model, is made inside, as its user would.
"""

from collections.abc import Callable
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from page import TUTORIAL
from torch import Tensor, nn

Contender = Callable[..., Tensor]


def torchattacks_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int, step_size: float, norm: str = "linf"
) -> Tensor:
    import torchattacks

    kind = {"linf": torchattacks.PGD, "l2": torchattacks.PGDL2}[norm]
    return kind(model, eps=eps, alpha=step_size, steps=steps, random_start=False)(x, y)


def foolbox_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int, step_size: float, norm: str = "linf"
) -> Tensor:
    import foolbox

    kind = {"linf": foolbox.attacks.LinfPGD, "l2": foolbox.attacks.L2PGD}[norm]
    attack = kind(abs_stepsize=step_size, steps=steps, random_start=False)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device=x.device)
    return attack.run(wrapped, x, foolbox.Misclassification(y), epsilon=eps)


def art_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int, step_size: float, norm: str = "linf"
) -> Tensor:
    from art.attacks.evasion import ProjectedGradientDescent
    from art.estimators.classification import PyTorchClassifier

    classifier = PyTorchClassifier(
        model,
        loss=nn.CrossEntropyLoss(),
        input_shape=tuple(x.shape[1:]),
        nb_classes=_classes(model, x),
        clip_values=(0.0, 1.0),
        device_type="gpu" if x.is_cuda else "cpu",
    )
    attack = ProjectedGradientDescent(
        classifier,
        norm={"linf": np.inf, "l2": 2}[norm],
        eps=eps,
        eps_step=step_size,
        max_iter=steps,
        batch_size=len(x),
        verbose=False,
    )
    return torch.from_numpy(attack.generate(x.cpu().numpy(), y.cpu().numpy())).to(x.device)


def cleverhans_pgd(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int, step_size: float, norm: str = "linf"
) -> Tensor:
    from cleverhans.torch.attacks.projected_gradient_descent import projected_gradient_descent

    norm = {"linf": np.inf, "l2": 2}[norm]
    x_adv = projected_gradient_descent(
        model, x, eps, step_size, steps, norm, clip_min=0.0, clip_max=1.0, y=y, rand_init=False
    )
    return x_adv.detach()


def tutorial_pgd(model: nn.Module, x: Tensor, y: Tensor, eps: float, *, steps: int, step_size: float) -> Tensor:
    """The loop as one finds it in many tutorials, in the manner of Kolter and Madry 2018: l-inf, and no pixel box."""
    delta = torch.zeros_like(x, requires_grad=True)
    for _ in range(steps):
        loss = F.cross_entropy(model(x + delta), y)
        loss.backward()
        delta.data = (delta + step_size * delta.grad.detach().sign()).clamp(-eps, eps)
        delta.grad.zero_()
    return (x + delta).detach()


def _classes(model: nn.Module, x: Tensor) -> int:
    """Return the number of classes, which ART wants to be told and a user knows: found once for each model."""
    if not hasattr(model, "_classes"):
        with torch.no_grad():
            model._classes = model(x[:1]).shape[1]
    return model._classes


def _named(title: str, package: str) -> str:
    return f"{title} {version(package)}"


CONTENDERS: dict[str, Contender] = {
    _named("torchattacks", "torchattacks"): torchattacks_pgd,
    _named("Foolbox", "foolbox"): foolbox_pgd,
    _named("ART", "adversarial-robustness-toolbox"): art_pgd,
    _named("CleverHans", "cleverhans"): cleverhans_pgd,
    TUTORIAL: tutorial_pgd,
}
