"""The figures: they are pictures, of what was asked for, and refuse what they cannot show."""

import io
import math
import re
from base64 import b64decode
from itertools import pairwise

import pytest
import torch
from bs4 import BeautifulSoup
from PIL import Image
from torch import nn

from helpers import plots
from helpers.models import NormalizedModel
from helpers.training import History


@pytest.fixture
def shown(monkeypatch):
    """The figures that a function has put below the cell, as SVG."""
    figures = []
    monkeypatch.setattr(plots, "display", lambda figure: figures.append(figure.data))
    return figures


@pytest.fixture
def drawn(shown, monkeypatch):
    """The figures, before they become pictures."""
    figures, encode = [], plots._encode
    monkeypatch.setattr(
        plots, "_encode", lambda figure, *args, **kw: figures.append(figure) or encode(figure, *args, **kw)
    )
    return figures


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


def pictures(svg: str) -> list[Image.Image]:
    """Return the pictures within a figure, in the order of their drawing."""
    return [Image.open(io.BytesIO(b64decode(content))) for content in re.findall(r'base64,\s*([^"]*)"', svg)]


def places(svg: str) -> list[tuple[float, float]]:
    """Return where the pictures within a figure stand, from left to right and from top to bottom."""
    found = re.findall(r"<image [^>]*>", svg)
    moves = [list(map(float, re.search(r"matrix\(([^)]*)\)", image)[1].split())) for image in found]
    return [(round(move[4]), round(move[5])) for move in moves]


@pytest.mark.parametrize("channels", [1, 3])
def test_image_rows_show_the_images_from_left_to_right(shown, channels):
    plots.show_images(torch.stack([torch.zeros(channels, 8, 8), torch.ones(channels, 8, 8)]), ["black", "white"])
    black, white = pictures(shown[0])
    assert [image.convert("L").getpixel((4, 4)) for image in (black, white)] == [0, 255]
    (left, y), (right, same) = places(shown[0])
    assert left < right and y == same


def test_image_grid_is_filled_row_by_row(shown):
    red, green, blue, white = (
        torch.tensor(c).view(3, 1, 1).expand(3, 8, 8) for c in ((1.0, 0, 0), (0, 1.0, 0), (0, 0, 1.0), (1.0, 1, 1))
    )
    plots.show_images(torch.stack([red, green, blue, white]), ["left", "right"], rows=["above", "below"])
    colors = [image.convert("RGB").getpixel((4, 4)) for image in pictures(shown[0])]
    assert colors == [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)]
    (a, b), (c, d), (e, f), (g, h) = places(shown[0])
    assert a == e < c == g and b == d < f == h


def test_titles_too_long_for_one_row_make_several(drawn):
    plots.show_images(torch.rand(8, 1, 8, 8), ["7 to 9"] * 8)
    plots.show_images(torch.rand(8, 1, 8, 8), ["a seven, now a nine, at last"] * 8)
    one, several = (figure.axes[0].get_subplotspec().get_gridspec().nrows for figure in drawn)
    assert one == 1 < several
    for figure in drawn:
        figure.draw_without_rendering()
        boxes = [ax.title.get_window_extent() for ax in figure.axes if ax.title.get_text()]
        assert not any(a.overlaps(b) for a, b in pairwise(boxes))


@pytest.mark.parametrize("lines", [1, 2, 3])
@pytest.mark.parametrize("rows", [None, ["clean", "attacked"]])
def test_titles_are_not_cut(drawn, rows, lines):
    plots.show_images(torch.rand(6 if rows else 3, 3, 224, 224), ["\n".join("xyz"[:lines])] * 3, rows=rows)
    drawn[0].draw_without_rendering()
    for ax in drawn[0].axes:
        assert ax.title.get_window_extent().y1 <= drawn[0].bbox.height


def test_a_figure_is_the_same_file_each_time_and_photographs_in_it_are_small(shown):
    x = torch.rand(1, 3, 224, 224)
    for _ in range(2):
        plots.show_images(torch.cat([x, x]), ["one", "two"])
    assert shown[0] == shown[1]
    assert [image.format for image in pictures(shown[0])] == ["JPEG"] * 2


def test_words_and_grounds_of_a_figure_can_follow_a_page(shown):
    """The site replaces the first white, the figure's ground, and black, the words' colour, which SVG leaves out."""
    plots.plot_lines([0, 1], {"a": [1, 2]}, xlabel="x", ylabel="y")
    assert shown[0].count("#ffffff") == 1 and 'id="figure_1"' in shown[0]
    assert plots.BLUE.lower() in shown[0]


@pytest.mark.parametrize("titles", [None, ["a", "b", "c"]])
def test_image_grid_names_its_columns_above_and_its_rows_at_the_left(drawn, titles):
    plots.show_images(torch.rand(6, 1, 8, 8), titles, rows=["clean", "attacked"])
    axes = drawn[0].axes
    assert [ax.get_title() for ax in axes] == [*(titles or [""] * 3), "", "", ""]
    assert [ax.get_ylabel() for ax in axes] == ["clean", "", "", "attacked", "", ""]
    assert axes[0].axison and not axes[1].axison  # a name is drawn only on axes that are


def test_attack_figure_shows_image_perturbation_and_sum(shown):
    x = torch.zeros(1, 3, 8, 8)
    plots.show_attack(MODEL, x, x + 0.8)
    assert [image.convert("L").getpixel((4, 4)) for image in pictures(shown[0])] == [0, 255, 204]


def test_lines_differ_in_colour_and_in_marker(drawn):
    plots.plot_lines([0, 1], {"a": [1, 2], "b": [2, 1]}, xlabel="x", ylabel="y", counts_of=4)
    first, second = drawn[0].axes[0].lines
    assert first.get_color() != second.get_color() and first.get_marker() != second.get_marker()


def test_marks_stand_where_they_say_and_are_no_lines_of_the_legend(drawn):
    plots.plot_lines([0, 2], {"a": [1, 2], "b": [2, 1]}, xlabel="x", ylabel="y", marks={"here": 1.5})
    (ax,) = drawn[0].axes
    assert list(ax.lines[2].get_xdata()) == [1.5, 1.5]
    assert [text.get_text() for text in ax.texts] == ["here"] and ax.texts[0].get_position()[0] == 1.5
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["a", "b"]


@pytest.mark.parametrize("kind", [torch.int64, torch.float32])
def test_matrix_has_its_numbers_in_their_fields_legible_on_dark_and_on_bright(drawn, kind):
    values = torch.tensor([[0, 1, 100], [99, 2, 7]], dtype=kind)
    plots.show_matrix(values, xlabel="prediction", ylabel="true class", title="examples")
    (ax,) = drawn[0].axes
    fields = {text.get_position(): (text.get_text(), text.get_color()) for text in ax.texts}
    assert fields == {
        (0, 0): ("0", "white"), (1, 0): ("1", "white"), (2, 0): ("100", plots.ON_BRIGHT),
        (0, 1): ("99", plots.ON_BRIGHT), (1, 1): ("2", "white"), (2, 1): ("7", "white"),
    }  # fmt: skip
    assert (ax.get_xlabel(), ax.get_ylabel(), ax.get_title()) == ("prediction", "true class", "examples")
    assert (ax.get_xticks().tolist(), ax.get_yticks().tolist()) == ([0, 1, 2], [0, 1])


def test_field_without_a_number_stays_empty(drawn):
    plots.show_matrix(torch.tensor([[math.nan, 3.0], [4.0, math.nan]]), xlabel="", ylabel="", title="")
    assert sorted(text.get_text() for text in drawn[0].axes[0].texts) == ["3", "4"]


HISTORY = History(loss=[1.0, 0.5], error=[0.4, 0.3], validation=[0.35, 0.25], kept=2)


SOME = torch.arange(10)
LADDER = [
    plots.Rung("clean", broken=SOME < 1, seconds=0.01),
    plots.Rung("PGD", broken=SOME < 3, seconds=0.62),
    plots.Rung("exact", broken=SOME < 4, proved=SOME >= 4, seconds=12.4),
    plots.Rung("CROWN", proved=SOME >= 7),
]


def test_sandwich_has_a_row_a_method_a_column_an_example_and_says_what_each_knows(drawn):
    shuffled = torch.randperm(10, generator=torch.Generator().manual_seed(0))
    rungs = [
        plots.Rung(r.name, *(None if part is None else part[shuffled] for part in (r.broken, r.proved)), r.seconds)
        for r in LADDER
    ]
    plots.show_sandwich(rungs)
    axes = drawn[0].axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["clean", "PGD", "exact", "CROWN"]
    said = [text.get_text() for text in axes.texts]
    assert said == ["at least 10 %, < 0.1 s", "at least 30 %, 0.6 s", "40 %, 12 s", "at most 70 %"]
    bars = [path.get_extents() for part in axes.collections for path in part.get_paths()]
    ends = [(round(bar.x0), round(bar.x1), round((bar.y0 + bar.y1) / 2)) for bar in bars]
    assert ends == [(0, 1, 0), (0, 3, 1), (0, 4, 2), (4, 10, 2), (7, 10, 3)]  # sorted alike in every row


def test_sandwich_of_a_method_that_left_some_open_gives_both_ends(drawn):
    plots.show_sandwich([plots.Rung("search", broken=SOME < 2, proved=SOME > 4, seconds=3.0)])
    assert drawn[0].axes[0].texts[0].get_text() == "20 to 50 %, 3.0 s"


def test_an_empty_row_of_the_sandwich_says_that_it_is_empty(drawn):
    plots.show_sandwich([plots.Rung("clean", broken=SOME < 0), plots.Rung("intervals", proved=SOME < 0)])
    said = [text.get_text() for text in drawn[0].axes[0].texts]
    assert said == ["nothing broken", "at least 0 %", "nothing proved", "at most 100 %"]


@pytest.mark.parametrize("validation", [HISTORY.validation, []])
def test_training_frame_is_a_picture_of_the_errors_so_far_with_room_for_the_rest(drawn, validation):
    frame = plots.training_frame(History(HISTORY.loss, HISTORY.error, validation), 5, "A < B")
    svg = BeautifulSoup(frame, "html.parser").svg
    assert svg["aria-label"] == "A < B" and svg["fill"] == "currentColor"
    assert "#ffffff" not in frame and "#000000" not in frame
    (ax,) = drawn[0].axes
    lines = [(line.get_label(), *(list(map(float, d)) for d in line.get_data())) for line in ax.lines]
    assert [(x, y) for _, x, y in lines] == [
        ([1, 2], [100 * e for e in errors]) for errors in (HISTORY.error, validation) if errors
    ]
    assert [label.split()[0] for label, _, _ in lines] == ["training", "validation"][: len(lines)]
    assert ax.get_xlim()[1] > 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plots.show_images(torch.rand(1, 2, 8, 8)), "1 or 3"),
        (lambda: plots.show_images(torch.rand(5, 3, 8, 8), rows=["a", "b"]), "rows must.*got 2 of 5"),
        (lambda: plots.show_images(torch.rand(2, 3, 8, 8), rows=[]), "rows must.*got 0 of 2"),
        (
            lambda: plots.show_images(torch.rand(6, 3, 8, 8), ["one", "two"], rows=["a", "b"]),
            "titles must have one for each of the 3 images of a row; got 2",
        ),
        (lambda: plots.show_matrix(torch.rand(3), xlabel="", ylabel="", title=""), r"values must have shape.*\(3,\)"),
        (lambda: plots.show_sandwich([]), "rungs must hold at least one"),
        (lambda: plots.show_sandwich([plots.Rung("nothing")]), "rungs must hold at least one"),
        (lambda: plots.show_sandwich([*LADDER, plots.Rung("short", SOME[:3] < 1)]), r"one shape \(N,\); got .*\(3,\)"),
        (lambda: plots.show_sandwich([*LADDER, plots.Rung("floats", SOME + 0.0)]), "bool tensors.*float32"),
        (lambda: plots.show_sandwich([*LADDER, plots.Rung("bug", proved=SOME > 2)]), "contradict each other: 1 of 10"),
        (lambda: plots.show_images(torch.rand(2, 3, 8, 8), ["one"]), "titles must have one for each of the 2"),
        (lambda: plots.show_images(torch.rand(2, 3, 8, 8) + 1), "values in \\[0, 1\\]"),
        (lambda: plots.plot_lines([0, 1], {"a": [1]}, xlabel="", ylabel=""), "'a' has 1"),
        (lambda: plots.amplify(torch.zeros(1), 0), "factor must be in"),
    ],
)
def test_what_cannot_be_shown_is_refused(shown, call, message):
    with pytest.raises(ValueError, match=message):
        call()
    assert not shown


# States of the interactive figures: HTML that holds its own pictures and says in words what they show


def read(html: str) -> tuple[BeautifulSoup, list[Image.Image]]:
    """Parse a state; return it and its pictures."""
    page = BeautifulSoup(html, "html.parser")
    sources = [image.get("src") or image["href"] for image in page.find_all(["img", "image"])]
    return page, [Image.open(io.BytesIO(b64decode(source.split("base64,")[1]))) for source in sources]


def test_attack_frame_shows_image_perturbation_and_five_classes():
    x, delta = torch.full((1, 3, 32, 32), 0.5), torch.full((1, 3, 32, 32), 0.004)
    names = ["zero", "one < two", "two", "three", "four", "five"]
    logits = torch.tensor([[3.0, 5.0, 1.0, 0.0, -1.0, -9.0]])
    page, (image, noise) = read(plots.attack_frame(x, delta, logits, 0, names))
    assert image.size == (160, 160) and noise.size == (16, 16)
    assert image.getpixel((80, 80))[0] == pytest.approx(255 * 0.504, abs=3)
    assert noise.getpixel((8, 8))[0] == pytest.approx(255 * 0.7, abs=3)
    texts = [text.text for text in page.svg.find_all("text")]
    assert texts[::2] == ["one < two", "zero", "two", "three", "four"]
    assert texts[1] == f"{100 * logits.softmax(1)[0, 1]:.1f} %"
    colors = [bar["fill"] for bar in page.svg.find_all("rect")]
    assert [color == plots.BLUE for color in colors] == [False, True, False, False, False]
    widths = [float(bar["width"]) for bar in page.svg.find_all("rect")]
    assert widths == sorted(widths, reverse=True)
    first, second = (img["alt"] for img in page.find_all("img"))
    assert "one < two 86" in first and "up to 1.02 levels" in second and "one < two" in page.svg["aria-label"]


def test_digits_frame_marks_wrong_answers_also_without_colour():
    images = torch.stack([torch.zeros(2, 1, 28, 28), torch.ones(2, 1, 28, 28)])
    said, y = torch.tensor([[3, 4], [3, 9]]), torch.tensor([3, 4])
    page, pictures = read(plots.digits_frame(images, said, y, ["weak", "strong"]))
    assert [(p.size, p.format, p.getpixel((30, 5))) for p in pictures] == [((56, 28), "PNG", 0), ((56, 28), "PNG", 255)]
    assert [b.text for b in page.find_all("b")] == ["3→3", "4→4", "3→3", "4→9\xa0✗"]
    assert [img["alt"] for img in page.find_all("img")] == [
        "2 attacked digits, [3, 4]. The weak network says [3, 4].",
        "2 attacked digits, [3, 4]. The strong network says [3, 9].",
    ]


def test_pictures_say_what_they_show_and_pixels_stay_pixels_where_there_are_few():
    photo = plots.html_picture(torch.rand(3, 160, 160), 'a "quote"')
    digit = plots.html_picture(torch.rand(1, 28, 56), "a digit", width=80, kind="png")
    assert BeautifulSoup(photo, "html.parser").img["alt"] == 'a "quote"'
    assert "pixelated" in digit and "pixelated" not in photo
    assert 'width="80" height="40"' in digit
