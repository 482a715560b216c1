"""The training loop."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from helpers._validation import check_classes, check_count, check_images, check_labels, check_logits, check_number


def train(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    epochs: int = 10,
    batch_size: int = 100,
    lr: float = 1e-3,
    seed: int = 0,
) -> list[float]:
    """Train `model` in place with Adam on the cross-entropy, with a progress bar, and leave it in eval mode.

    It is left in eval mode also when training stops with an error.

    Args:
        model: takes images like `x`, returns logits (N, K).
        x: (N, ...), values in [0, 1]. y: (N,), int64, 0 to K - 1. Both on the model's device.
        epochs: passes over the data, at least 1. batch_size: at least 1. lr: Adam's learning rate, above 0, at most 1.
        seed: of the order of the examples; the global random state is not used.

    Returns:
        The mean loss of each epoch, in nats.

    Raises:
        TypeError, ValueError: an argument is not allowed, or the model does not return logits.
        FloatingPointError: the loss became NaN or infinite; training stops at once.
    """
    check_images(x)
    check_labels(y, x)
    check_count(epochs, "epochs")
    check_count(batch_size, "batch_size")
    check_number(lr, "lr", low=0, high=1, open_low=True)
    model.eval()  # first, so that a look at the logits leaves the statistics of batch norm alone
    with torch.no_grad():
        logits = model(x[:1])
    check_logits(logits, 1)
    check_classes(y, logits.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    generator = torch.Generator().manual_seed(seed)
    history = []
    try:
        model.train()
        for epoch in (bar := trange(epochs, desc="training", leave=False)):
            total = 0.0
            for rows in torch.randperm(len(x), generator=generator).split(batch_size):
                rows = rows.to(x.device)
                loss = F.cross_entropy(model(x[rows]), y[rows])
                if not loss.isfinite():
                    raise FloatingPointError(f"the loss became {loss.item()} in epoch {epoch + 1}: try lr below {lr:g}")
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                total += loss.item() * len(rows)
            history.append(total / len(x))
            bar.set_postfix(loss=f"{history[-1]:.3f}")
    finally:
        model.eval()
    return history
