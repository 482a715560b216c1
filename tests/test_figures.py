"""The figures, still and interactive: they are pictures, of what was asked for, and refuse what they cannot show."""

import io

import ipywidgets
import pytest
import torch
from PIL import Image
from torch import nn

from helpers import plots, widgets
from helpers.models import NormalizedModel


@pytest.fixture
def shown(monkeypatch):
    """The pictures that a figure function has put below the cell."""
    pictures = []
    monkeypatch.setattr(plots, "display", lambda image: pictures.append(Image.open(io.BytesIO(image.data))))
    return pictures


class Brightness(nn.Module):
    """Says "bright" with probability sigmoid(20 * (mean - 0.5))."""

    def forward(self, x):
        mean = 20 * (x.flatten(1).mean(1) - 0.5)
        return torch.stack([-mean / 2, mean / 2], dim=1)


MODEL = NormalizedModel(Brightness(), (0.0,) * 3, (1.0,) * 3, ("dark", "bright"))


def test_amplify_puts_no_change_at_mid_grey_and_scales_the_rest():
    assert plots.amplify(torch.tensor([0.0, 0.001, -0.001, 1.0])).tolist() == pytest.approx([0.5, 0.55, 0.45, 1.0])


def test_top_predictions_are_sorted_and_named():
    (first, p), (second, q) = plots.top_predictions(MODEL, torch.full((1, 3, 4, 4), 0.6), k=2)
    assert (first, second) == ("bright", "dark")
    assert p == pytest.approx(1 / (1 + torch.e**-2), abs=1e-5) and p + q == pytest.approx(1)


def test_top_predictions_take_one_image():
    with pytest.raises(ValueError, match="x must be a batch of one image; got 2"):
        plots.top_predictions(MODEL, torch.rand(2, 3, 4, 4))


@pytest.mark.parametrize("channels", [1, 3])
def test_image_rows_show_the_images_from_left_to_right(shown, channels):
    plots.show_images(torch.stack([torch.zeros(channels, 8, 8), torch.ones(channels, 8, 8)]), ["black", "white"])
    (picture,) = shown
    grey = picture.convert("L")
    assert picture.format == "JPEG"
    assert grey.getpixel((picture.width // 4, picture.height // 2)) < 20
    assert grey.getpixel((3 * picture.width // 4, picture.height // 2)) > 235


def test_attack_figure_shows_image_perturbation_and_sum(shown):
    x = torch.zeros(1, 3, 8, 8)
    plots.show_attack(MODEL, x, x + 0.8)
    (picture,) = shown
    row = [picture.convert("L").getpixel((picture.width * k // 6, picture.height * 3 // 5)) for k in (1, 3, 5)]
    assert row[0] < 20 and row[1] > 235 and 190 < row[2] < 220


def test_line_figures_are_png(shown):
    plots.plot_lines([0, 1], {"a": [1, 2], "b": [2, 1]}, xlabel="x", ylabel="y", counts_of=4)
    assert shown[0].format == "PNG"


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.show_images(torch.rand(1, 2, 8, 8)), "1 or 3"),
        (lambda: plots.show_images(torch.rand(2, 3, 8, 8), ["one"]), "titles must have one for each of the 2"),
        (lambda: plots.show_images(torch.rand(2, 3, 8, 8) + 1), "values in \\[0, 1\\]"),
        (lambda: plots.plot_lines([0, 1], {"a": [1]}, xlabel="", ylabel=""), "'a' has 1"),
        (lambda: plots.amplify(torch.zeros(1), 0), "factor must be in"),
        (lambda: widgets.flipbook([], [], ""), "at least 1; got 0 and 0"),
        (lambda: widgets.flipbook([b"a"], ["A", "B"], ""), "got 1 and 2"),
    ],
)
def test_what_cannot_be_shown_is_refused(shown, call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert not shown


@pytest.mark.parametrize("version", [7, 8])
def test_flipbook_slider_and_pages_belong_together(monkeypatch, version):
    if version == 7:  # Colab's: no Stack
        monkeypatch.delattr(ipywidgets, "Stack")
    book = widgets.flipbook([b"first", b"second"], ["One < two", "Two"], "steps")
    slider, pages = book.children
    assert (slider.min, slider.max, slider.description) == (0, 1, "steps")
    assert [page.value.count('alt="') for page in pages.children] == [1, 1]
    assert 'alt="One &lt; two"' in pages.children[0].value
    if version == 7:
        slider.value = 1
        assert pages.selected_index == 1
