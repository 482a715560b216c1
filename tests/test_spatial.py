"""Rotations, shifts and patches: against torchvision's own and plain loops, the search as an exact one, bad input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from networks import PROBE_Y, SEEDS, cases, probe, random_images, random_network, rng, same, snapshot
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import affine

from helpers.spatial import paste, rotate_and_shift, worst_placement

torch.set_num_threads(1)

X = torch.rand(4, 3, 8, 8, generator=rng(0))


@pytest.mark.parametrize("size", [7, 8, 28])
@pytest.mark.parametrize(("degrees", "right", "down"), [(0, 0, 0), (17, 0, 0), (-90, 0, 0), (0, 2, -3), (31, -2, 1)])
def test_agrees_with_torchvision(size, degrees, right, down):
    x = torch.rand(2, 3, size, size, generator=rng(size), dtype=torch.float64)
    theirs = affine(x, -degrees, [right, down], 1.0, [0.0, 0.0], InterpolationMode.BILINEAR)  # theirs turn clockwise
    assert torch.allclose(rotate_and_shift(x, degrees, right, down), theirs, atol=1e-6)


@given(SEEDS)
@cases(20)
def test_each_image_has_its_own_move_and_stays_an_image(seed):
    x = random_images(5, (1, 9, 9), torch.float64, rng(seed))
    angle, right, down = 60 * torch.rand(3, 5, generator=rng(seed), dtype=torch.float64) - 30
    together = rotate_and_shift(x, angle, right / 10, down / 10)
    apart = [
        rotate_and_shift(x[i : i + 1], float(angle[i]), float(right[i] / 10), float(down[i] / 10)) for i in range(5)
    ]
    assert torch.allclose(together, torch.cat(apart), atol=1e-6)
    assert 0 <= together.min() and together.max() <= 1


def test_whole_shifts_and_a_quarter_turn_move_pixels_and_no_move_is_none():
    assert torch.allclose(rotate_and_shift(X), X, atol=1e-6)
    assert torch.allclose(rotate_and_shift(X, right=2)[..., 2:], X[..., :-2], atol=1e-5)
    assert rotate_and_shift(X, down=-1)[:, :, -1].abs().max() < 1e-5
    assert torch.allclose(rotate_and_shift(X, 90), X.rot90(1, (2, 3)), atol=1e-5)  # rot90 turns counterclockwise


@given(SEEDS)
@cases(15)
def test_the_worst_placement_is_what_a_search_by_hand_finds(seed):
    generator = rng(seed)
    model = random_network((1, 6, 6), 3, torch.float64, generator)
    x = random_images(6, (1, 6, 6), torch.float64, generator)
    y = model(x).argmax(1)
    degrees, shifts = [-20.0, 0.0, 20.0], [-1, 0, 1]
    found = worst_placement(model, x, y, degrees, shifts)
    wrong = torch.zeros(6, dtype=torch.bool)
    for a in degrees:
        for right in shifts:
            for down in shifts:
                wrong |= model(rotate_and_shift(x, a, right, down)).argmax(1) != y
    assert torch.equal(model(found).argmax(1) != y, wrong)
    assert torch.equal(found[~wrong], x[~wrong])


def test_the_smallest_move_comes_first_and_what_is_wrong_already_stays():
    def model(x):  # class 1 as soon as the upper left pixel is dark
        return torch.stack([x[:, 0, 0, 0], 0.5 - x[:, 0, 0, 0]], 1)

    x = torch.ones(2, 1, 5, 5)
    found = worst_placement(model, x, torch.tensor([0, 1]), [0], range(-2, 3))
    assert torch.allclose(found[0], rotate_and_shift(x[:1], right=1)[0]) or torch.allclose(
        found[0], rotate_and_shift(x[:1], down=1)[0]
    )
    assert torch.equal(found[1], x[1])


def test_a_model_is_left_as_it_was():
    model = probe()
    before, x = snapshot(model), torch.rand(len(PROBE_Y), 1, 4, 4, generator=rng(1))
    worst_placement(model, x, PROBE_Y, [0, 10], [0, 1])
    assert same(before, snapshot(model))
    assert not any(any(modes) for modes in model.modes)


@given(SEEDS, st.integers(1, 5), st.integers(1, 6))
@cases(20)
def test_paste_is_a_loop_over_images(seed, height, width):
    generator = rng(seed)
    x, patch = torch.rand(3, 2, 5, 6, generator=generator), torch.rand(2, height, width, generator=generator)
    top, left = (torch.randint(room + 1, (3,), generator=generator) for room in (5 - height, 6 - width))
    by_hand = x.clone()
    for i in range(3):
        by_hand[i, :, top[i] : top[i] + height, left[i] : left[i] + width] = patch
    assert torch.equal(paste(x, patch, top, left), by_hand)


def test_the_gradient_reaches_the_patch_and_the_images_stay():
    before, patch = X.clone(), torch.rand(3, 2, 2, generator=rng(2)).requires_grad_()
    (grad,) = torch.autograd.grad(paste(X, patch, 1, torch.tensor([0, 1, 2, 6])).sum(), patch)
    assert torch.equal(grad, torch.full_like(patch, 4)) and torch.equal(X, before)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: worst_placement(lambda x: x, X, torch.zeros(4).long(), [], [0]), "at least one point; got 0 angles"),
        (lambda: worst_placement(lambda x: x, X, torch.zeros(4).long(), [0], []), "and 0 shifts"),
        (lambda: paste(X, torch.rand(3, 9, 2), 0, 0), "no larger than the images, 8 x 8; got 9 x 2"),
        (lambda: paste(X, torch.rand(3, 2, 9), 0, 0), "no larger than the images"),
        (lambda: paste(X, torch.rand(1, 2, 2), 0, 0), "as many channels as x"),
        (lambda: paste(X, torch.rand(3, 4, 4), 5, 0), r"top must be in \[0, 4\]"),
        (lambda: paste(X, torch.rand(3, 4, 4), 0, -1), r"left must be in \[0, 4\]"),
        (lambda: paste(X, torch.rand(3, 4, 4), torch.zeros(3).long(), 0), "one for each of 4 images"),
        (lambda: paste(X, torch.rand(3, 4, 4), 0.5, 0), "top must be a whole number"),
        (lambda: paste(X, 2 + torch.rand(3, 4, 4), 0, 0), "patch must"),
        (lambda: rotate_and_shift(X[..., :5]), "square images"),
        (lambda: rotate_and_shift(X, float("nan")), "degrees must be in"),
        (lambda: rotate_and_shift(X, right=torch.zeros(3)), "one for each of 4 images"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(ValueError, match=message):
        call()
