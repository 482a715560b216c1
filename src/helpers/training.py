"""One training loop. Standard training is adversarial training with no attack."""

import contextlib
import hashlib
import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from helpers._validation import (
    check_classes,
    check_count,
    check_images,
    check_labels,
    check_logits,
    check_number,
    explained_dtype,
)
from helpers.attacks import AttackWarning, pgd
from helpers.data import digits
from helpers.models import digit_network, small_network
from helpers.risk import Attack, adversarial_risk

Loss = Callable[[nn.Module, Tensor, Tensor, float], Tensor]  # (model, x, y, eps) to the batch's mean loss, ()


@dataclass
class History:
    """What happened in training, one number for each epoch."""

    loss: list[float] = field(default_factory=list)  # mean cross-entropy on the (attacked) training examples, in nats
    error: list[float] = field(default_factory=list)  # share of them that was wrong when it was their turn, 0 to 1
    # With a loss of the caller's: the mean of what it returned, and the share of the clean examples that was wrong.
    validation: list[float] = field(default_factory=list)  # what `validate` returned; empty without it
    kept: int = 0  # the epoch, counted from 1, whose weights the model is left with; 0 for those it came with


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    attack: Attack | None = None,
    loss: Loss | None = None,
    eps: float = 0.0,
    eps_ramp: int = 0,
    epochs: int = 10,
    batch_size: int = 100,
    lr: float = 2e-3,
    seed: int = 0,
    validate: Callable[[nn.Module], float] | None = None,
    on_epoch: Callable[[History], None] | None = None,
) -> History:
    """Train `model` in place with Adam on the cross-entropy, with a progress bar, and leave it in eval mode.

    With an attack, each batch is replaced by its attacked version, made afresh with the weights of the moment:
    adversarial training (Madry et al. 2018, equation 2.1). With a loss, that one is made small instead, for example an
    upper bound of the worst cross-entropy: certified training. Without either it is standard training. The learning
    rate is `lr` for the first half of the steps and then falls in equal parts to 0.

    Interrupted, by the stop button say, it prints a line and returns: the model and its history can be used. Also after
    an error the model has the weights of `History.kept`, and is in eval mode.

    Args:
        model: takes images like `x`, returns logits (N, K).
        x: (N, ...), values in [0, 1]. y: (N,), int64, 0 to K - 1; classes may be missing, as when a model is tuned to a
            few of its classes. Both on the model's device, x in its dtype.
        attack: function of (model, x, y, eps) that returns adversarial images, such as `partial(pgd, steps=7)`.
        loss: function of (model, x, y, eps) that returns the mean loss of a batch, a tensor of shape () with a gradient
            for the model's parameters; called in training mode. Either an attack or a loss may be given, not both.
        eps: the budget of the attack or loss, in its units; above 0 with an attack, at least 0 with a loss, 0 without.
        eps_ramp: the epochs, less than `epochs`, in which the budget grows from 0 to `eps`, batch by batch.
        epochs: passes over the data, at least 1. batch_size: at least 1. lr: Adam's learning rate, above 0, at most 1.
        seed: of the order of the examples. The global random state is not used, except by an attack that does.
        validate: function of the model that returns a number, the smaller the better, called after each epoch. The
            weights kept are those of the epoch where it was smallest, the last such epoch if there are several; epochs
            of the ramp do not count. Without it, the last weights are kept.
        on_epoch: function of the history so far, called after each epoch.

    Returns:
        The history.

    Raises:
        TypeError, ValueError: an argument is not allowed, the model does not return logits, or the loss no such tensor.
        FloatingPointError: training diverged: a loss or gradient became NaN or infinite, or the mean loss of an epoch
            exceeded ten times what it was before training (with a loss of the caller's, in the first batch), or what
            guessing would get if that is more.
    """
    check_images(x)
    check_labels(y, x)
    check_count(epochs, "epochs")
    check_count(batch_size, "batch_size")
    check_count(eps_ramp, "eps_ramp", low=0, high=epochs - 1)
    check_number(lr, "lr", low=0, high=1, open_low=True)
    check_number(eps, "eps", low=0, high=torch.finfo(torch.float32).max)
    if attack is not None and not callable(attack):
        raise TypeError(f"attack must be a function of (model, x, y, eps), such as pgd; got {type(attack).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function of (model, x, y, eps) that returns (); got {type(loss).__name__}")
    if loss is not None and attack is not None:
        raise ValueError("loss and attack must not both be given: let the loss run the attack")
    if loss is None and (attack is not None) != (eps > 0):
        raise ValueError(f"eps must be above 0 with an attack and 0 without; got {eps:g} and attack {attack!r}")
    if eps == 0 and eps_ramp:
        raise ValueError(f"eps_ramp must be 0 without an attack or a loss, and where eps is 0; got {eps_ramp}")
    advice = f"Try lr below {lr:g}" + (f", or eps_ramp above {eps_ramp}." if loss is not None and eps > 0 else ".")
    too_much = 10 * _loss_before(model, x[:batch_size], y[:batch_size], y)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    steps = epochs * math.ceil(len(x) / batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1, 2 * (1 - step / steps)))
    generator = torch.Generator().manual_seed(seed)
    history, weights = History(), deepcopy(model.state_dict())
    try:
        for epoch in (bar := trange(epochs, desc="training", leave=False)):
            model.train()
            loss_sum, wrong = 0.0, 0
            for rows in torch.randperm(len(x), generator=generator).split(batch_size):
                rows = rows.to(x.device)
                images, labels = x[rows], y[rows]
                ramp = (schedule.last_epoch + 1) / (steps / epochs * eps_ramp) if eps_ramp else 1
                budget = eps * min(1, ramp)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", AttackWarning)  # few steps are enough to learn from
                    if attack is not None:
                        images = attack(model, images, labels, budget)
                    elif loss is not None:
                        value = _checked(loss(model, images, labels, budget))
                if loss is None:
                    logits = model(images)
                    value = F.cross_entropy(logits, labels)
                else:
                    logits = _said(model, images)
                    if schedule.last_epoch == 0:
                        too_much = max(too_much, 10 * value.item())
                optimizer.zero_grad()
                value.backward()
                if loss is not None and all(p.grad is None for p in model.parameters()):
                    raise ValueError("loss must depend on the model's parameters; none of them gets a gradient")
                length = torch.nn.utils.get_total_norm(p.grad for p in model.parameters() if p.grad is not None)
                _check_finite(value, length, epoch, advice)  # before the step, so that no weight becomes NaN
                optimizer.step()
                schedule.step()
                loss_sum += value.item() * len(rows)
                wrong += int((logits.argmax(1) != labels).sum())
            model.eval()
            mean = loss_sum / len(x)
            if mean > too_much:
                raise FloatingPointError(
                    f"training diverged: the mean loss of epoch {epoch + 1} is {mean:.3g}, over {too_much:.3g}. "
                    + advice
                )
            validation = []
            if validate is not None:  # it may be interrupted, so before anything is written down
                validation = [float(validate(model))]
                check_number(validation[0], "what validate returns", low=-math.inf, high=math.inf)
            history.loss.append(mean)
            history.error.append(wrong / len(x))
            history.validation += validation
            counted = history.validation[eps_ramp:]
            if not counted or counted[-1] == min(counted):
                weights, history.kept = deepcopy(model.state_dict()), epoch + 1
            bar.set_postfix(loss=f"{mean:.3f}")
            if on_epoch is not None:
                on_epoch(history)
    except KeyboardInterrupt:
        print(
            f"Interrupted in epoch {len(history.loss) + 1} of {epochs}: the weights are those of epoch {history.kept}."
        )
    finally:
        model.load_state_dict(weights)
        model.zero_grad()
        model.eval()
    return history


BOOK_NETWORKS = ("standard", "robust", "small")


def book_network(name: str, device: torch.device | str | None = None) -> nn.Sequential:
    """Train one of the networks that run through Part II, by the recipe of chapter 5, and return it in eval mode.

    "standard" is the convolutional digits network, trained as usual. "robust" is the same network, adversarially
    trained at eps 0.1 in l-inf. "small" is a fully connected one (784-50-20-10), trained like the robust one: exact
    answers about it take fractions of a second. On one CPU core they take about 3, 25 and 8 seconds, once: the weights
    are kept in torch's cache (`torch.hub.get_dir()`), and read from there for as long as they would come out the same.

    Args:
        name: "standard", "robust" or "small".
        device: where to put it; by default a GPU if there is one, else the CPU.

    Raises:
        ValueError: another name.
    """
    if name not in BOOK_NETWORKS:
        raise ValueError(f"name must be one of {list(BOOK_NETWORKS)}; got {name!r}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    network = (small_network() if name == "small" else digit_network()).to(device)
    kept, before = _kept_weights(name, device), deepcopy(network.state_dict())
    try:
        network.load_state_dict(torch.load(kept, map_location=device, weights_only=True))
        return network.eval()
    except Exception:  # not there yet, or damaged in one of many ways, perhaps found out half-way
        network.load_state_dict(before)
    history, epochs = _train_book_network(name, network)
    if len(history.loss) == epochs:  # it was not interrupted
        with contextlib.suppress(OSError):  # a folder that cannot be written costs the next reader time, no more
            kept.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=kept.parent) as folder:  # whole or not at all, for others who look meanwhile
                torch.save(network.state_dict(), Path(folder, kept.name))
                Path(folder, kept.name).replace(kept)
    return network


def _train_book_network(name: str, network: nn.Module) -> tuple[History, int]:
    """Train `network` in place; return what happened and the number of epochs that were asked for."""
    data, device = digits(), next(network.parameters()).device
    x, y = data.x_train.to(device), data.y_train.to(device)
    x_val, y_val, x, y = x[-500:], y[-500:], x[:-500], y[:-500]  # the last 500 choose the epoch
    if name == "standard":
        return train(network, x, y, epochs=10), 10

    def validate(network: nn.Module) -> float:
        return adversarial_risk(network, x_val, y_val, 0.1, attacks=[partial(pgd, steps=10)]).value

    inner = partial(pgd, loss="cross_entropy", steps=5)
    epochs, ramp = (20, 6) if name == "small" else (12, 4)
    history = train(network, x, y, attack=inner, eps=0.1, epochs=epochs, lr=4e-3, eps_ramp=ramp, validate=validate)
    return history, epochs


def _kept_weights(name: str, device: torch.device) -> Path:
    """Return where the weights are kept: a name for all that decides how they come out, the code that trains too."""
    code = (path.read_bytes() for path in sorted(Path(__file__).parent.glob("*.py")))
    machine = f"{torch.__version__} {device.type} {torch.get_num_threads()}".encode()
    told = hashlib.sha256(b"".join([*code, machine, digits().x_train.numpy().tobytes()])).hexdigest()
    return Path(torch.hub.get_dir(), "checkpoints", f"book_{name}_{told[:16]}.pt")


def _loss_before(model: nn.Module, x: Tensor, y: Tensor, labels: Tensor) -> float:
    """Check what `model` returns and that `labels` are its classes; return its loss, or that of guessing if higher."""
    model.eval()  # first, so that a look at the logits leaves the statistics of batch norm alone
    with torch.no_grad(), explained_dtype(model, x):
        logits = model(x)
    check_logits(logits, len(x))
    classes = logits.shape[1]
    check_classes(labels, classes)
    return max(F.cross_entropy(logits, y).item(), math.log(classes))


def _checked(value: Tensor) -> Tensor:
    """Check that what the caller's loss returned can be differentiated; whether it is finite is seen later."""
    if not isinstance(value, Tensor):
        raise TypeError(f"loss must return a tensor of shape (), the batch's mean; got {type(value).__name__}")
    if value.shape != () or not value.is_floating_point():
        raise ValueError(
            f"loss must return one number, the batch's mean, of shape (); got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )
    if not value.requires_grad:
        raise ValueError("loss must return a number with a gradient; it has none: was it detached, or under no_grad?")
    return value


@torch.no_grad()
def _said(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits in eval mode, so that batch norm's statistics stay as they are; leave it in training mode."""
    model.eval()
    logits = model(x)
    model.train()
    return logits


def _check_finite(loss: Tensor, length: Tensor, epoch: int, advice: str) -> None:
    if not (loss + length).isfinite():
        raise FloatingPointError(
            f"training diverged: in epoch {epoch + 1} the loss is {loss.item():.3g}, its gradient's length "
            f"{length.item():.3g}. {advice}"
        )
