"""Changes of place: pictures rotated and shifted, and a patch pasted into them."""

import math
from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from helpers._validation import check_images, check_labels, check_number
from helpers.attacks import Model, frozen

Number = float | Tensor  # one for all images, or (N,), one for each


def rotate_and_shift(x: Tensor, degrees: Number = 0.0, right: Number = 0.0, down: Number = 0.0) -> Tensor:
    """Return the images rotated about their centre and then shifted, like `x`; what comes in from outside is 0.

    Bilinear interpolation: a pixel of the result is a weighted mean of the four pixels nearest to where it comes from
    (Jaderberg et al. 2015). So the result stays in [0, 1], and is a little blurred, but for whole shifts.

    Args:
        x: (N, C, H, W), square, values in [0, 1].
        degrees: counterclockwise. right, down: in pixels; negative is left, or up. Each is one number for all images,
            or (N,), one for each.

    Raises:
        TypeError, ValueError: these are not square images, or a number is not finite or not one for each image.
    """
    check_images(x)
    if x.ndim != 4 or x.shape[2] != x.shape[3]:
        raise ValueError(f"x must be square images (N, C, H, H); got shape {tuple(x.shape)}")
    angle, right, down = (
        _for_each(value, name, x) for value, name in [(degrees, "degrees"), (right, "right"), (down, "down")]
    )
    angle = angle * (math.pi / 180)
    cos, sin, half = angle.cos(), angle.sin(), x.shape[2] / 2
    # Where does a pixel of the result come from? Shift back, then turn back; here down is positive.
    rows = [cos, -sin, (sin * down - cos * right) / half, sin, cos, (-sin * right - cos * down) / half]
    grid = F.affine_grid(torch.stack(rows, 1).view(-1, 2, 3), list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, align_corners=False).clamp(0, 1)


@torch.no_grad()
def worst_placement(model: Model, x: Tensor, y: Tensor, degrees: Iterable[float], shifts: Iterable[float]) -> Tensor:
    """Search all rotations and shifts of a grid: exact, there.

    Args:
        model: takes images like `x`, returns logits (N, K); used in eval mode and left as it was.
        x: (N, C, H, H), values in [0, 1]. y: (N,), int64.
        degrees: the angles to try. shifts: the shifts to try, in pixels, to the right and down: each with each.

    Returns:
        Like `x`: for each image one that the model gets wrong, the first that was found, small moves first; where the
        grid has none, `x` itself. So the model is wrong on the result exactly if it is wrong on `x` or on a move of it.

    Raises:
        TypeError, ValueError: an argument is not allowed; the grid has no point.
    """
    check_images(x)
    check_labels(y, x)
    angles, steps = [float(a) for a in degrees], [float(s) for s in shifts]
    if not angles or not steps:
        raise ValueError(
            f"degrees and shifts must make a grid with at least one point; got {len(angles)} angles and "
            f"{len(steps)} shifts. No rotation: degrees=[0]."
        )
    far, wide = max(map(abs, angles)) or 1, max(map(abs, steps)) or 1
    moves = [(a, right, down) for a in angles for right in steps for down in steps]
    moves.sort(key=lambda move: abs(move[0]) / far + (abs(move[1]) + abs(move[2])) / wide)
    result = x.clone()
    with frozen(model):
        left = (model(x).argmax(1) == y).nonzero()[:, 0]
        for move in moves:
            if len(left) == 0:
                break
            moved = rotate_and_shift(x[left], *move)
            fooled = model(moved).argmax(1) != y[left]
            result[left[fooled]] = moved[fooled]
            left = left[~fooled]
    return result


def paste(x: Tensor, patch: Tensor, top: int | Tensor, left: int | Tensor) -> Tensor:
    """Return the images with a patch in them, like `x`; the gradient reaches the patch.

    Args:
        x: (N, C, H, W), values in [0, 1]. patch: (C, h, w), values in [0, 1].
        top, left: the row and column of the patch's upper left corner: one for all images, or (N,), one for each.

    Raises:
        TypeError, ValueError: `x` is not such a tensor, or the patch is larger than the images, has another number of
            channels, or would not lie within them.
    """
    check_images(x)
    check_images(patch, "patch")
    if x.ndim != 4 or patch.ndim != 3 or patch.shape[0] != x.shape[1]:
        shapes = f"{tuple(patch.shape)}, and x of shape {tuple(x.shape)}"
        raise ValueError(f"patch must have shape (C, h, w), with as many channels as x (N, C, H, W); got {shapes}")
    height, width = patch.shape[1:]
    if height > x.shape[2] or width > x.shape[3]:
        raise ValueError(
            f"patch must be no larger than the images, {x.shape[2]} x {x.shape[3]}; got {height} x {width}"
        )
    corners = []
    for value, name, room in [(top, "top", x.shape[2] - height), (left, "left", x.shape[3] - width)]:
        corner = torch.as_tensor(value, device=x.device)
        if corner.is_floating_point() or corner.shape not in ((), (len(x),)):
            raise ValueError(f"{name} must be a whole number, or one for each of {len(x)} images; got {value}")
        if corner.min() < 0 or corner.max() > room:
            raise ValueError(f"{name} must be in [0, {room}] for the patch to lie within the image; got {value}")
        corners.append(corner.expand(len(x)))
    rows = corners[0][:, None] + torch.arange(height, device=x.device)
    columns = corners[1][:, None] + torch.arange(width, device=x.device)
    images = torch.arange(len(x), device=x.device)[:, None, None]
    # Indices of images, rows and columns come first in the result of indexing, so channels go last.
    result = x.movedim(1, -1).clone()
    result[images, rows[:, :, None], columns[:, None, :]] = patch.movedim(0, -1)
    return result.movedim(-1, 1)


def _for_each(value: Number, name: str, x: Tensor) -> Tensor:
    """Return `value` as one number for each image, in the dtype of `x`."""
    if not isinstance(value, Tensor):
        check_number(value, name, low=-1e6, high=1e6)
    values = torch.as_tensor(value, dtype=x.dtype, device=x.device)
    if values.shape not in ((), (len(x),)) or not values.isfinite().all():
        raise ValueError(f"{name} must be a finite number, or one for each of {len(x)} images; got {value}")
    return values.expand(len(x))
