"""The interactive figures: with a kernel they compute, without one they carry their states. With ipywidgets 7 and 8."""

import io
import json
import os
import re
import subprocess
import sys
import threading

import ipywidgets
import pytest
import torch
from bs4 import BeautifulSoup
from conftest import ROOT
from jupyter_client.manager import start_new_kernel
from networks import random_network, rng
from PIL import Image
from torch import nn

from helpers import widgets
from helpers.attacks import pgd
from helpers.exact import Look
from helpers.explorer import Explorer, Frame
from helpers.models import NormalizedModel
from helpers.training import History, train

LIMIT = 1_000_000  # characters of widget state that a chapter may add to its page


class Clock:
    """Stands in for `threading.Timer`: what waits is fired by the test, and never by itself."""

    def __init__(self):
        self.waiting = []

    def __call__(self, wait, function, args=()):
        timer = type("Timer", (), {"start": lambda t: self.waiting.append(t), "cancel": lambda t: t.drop()})()
        timer.drop = lambda: self.waiting.remove(timer) if timer in self.waiting else None
        timer.fire = lambda: function(*args)
        return timer

    def fire(self):
        waiting, self.waiting = self.waiting, []
        futures = [timer.fire() for timer in waiting]
        return futures[-1] if futures else None


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(threading, "Timer", clock)
    return clock


def explorer(draw=None, stored=(0, 2)):
    """A figure of two controls, of which some values are stored, and a list of all that it was made to draw."""
    drawn = []

    def drawing(number, letter):
        drawn.append((number, letter))
        if draw is not None:
            draw(number)
        return Frame(f"<p>{number}{letter}</p>", f"{number} and {letter}")

    controls = {
        "number": ipywidgets.SelectionSlider(options=range(10), value=stored[0]),
        "letter": ipywidgets.Dropdown(options=[("A", "a"), ("B", "b")]),
    }
    return Explorer(drawing, controls, {"number": stored, "letter": ("a", "b")}), drawn


def shown(figure):
    return figure.picture.value, figure.words.value


def stored_states(figure):
    """What the site's script finds in a figure."""
    found = BeautifulSoup(figure.children[-1].value, "html.parser").script
    assert found["type"] == "application/json"
    return json.loads(found.string)


# The figure and its states


def test_all_combinations_of_the_stored_values_are_drawn_and_stored_in_order():
    figure, drawn = explorer()
    assert drawn == [(0, "a"), (0, "b"), (2, "a"), (2, "b")]
    states = stored_states(figure)
    assert states["kept"] == [[0, 2], [0, 1]]
    assert [html for html, _ in states["frames"]] == ["<p>0a</p>", "<p>0b</p>", "<p>2a</p>", "<p>2b</p>"]
    assert shown(figure) == ("<p>0a</p>", "0 and a")


def test_pictures_are_stored_once_however_many_states_share_them():
    source = "data:image/png;base64," + 1000 * "A"

    def draw(k):
        return Frame(f'<img src="{source}" alt="</script>{k}">', f"{k}")

    figure = Explorer(draw, {"k": ipywidgets.Dropdown(options=range(4))}, {"k": range(4)})
    content = figure.children[-1].value
    assert content.count("AAAA") == 250 and content.count("</script>") == 1
    states = stored_states(figure)
    restored = [re.sub(r"\{(\d+)\}", lambda m: states["shared"][int(m[1])], html) for html, _ in states["frames"]]
    assert restored == [draw(k).html for k in range(4)]


def test_the_text_that_a_notebook_stores_is_short_and_the_same_in_every_run():
    assert repr(explorer()[0]) == repr(explorer()[0]) == "Explorer(number, letter)"


@pytest.mark.parametrize(("stored", "named"), [((0, 11), r"'number'.*\[0, 11\]"), ((1, 2), r"'number'.*\[1, 2\]")])
def test_what_cannot_be_stored_is_refused(stored, named):
    control = {"number": ipywidgets.Dropdown(options=range(10))}  # at 0
    with pytest.raises(ValueError, match=f"stored must have options of {named}"):
        Explorer(lambda number: Frame("", ""), control, {"number": stored})


# With a kernel


def test_a_known_state_is_shown_at_once_and_not_computed_again(clock):
    figure, drawn = explorer()
    figure.controls["number"].value = 2
    assert shown(figure) == ("<p>2a</p>", "2 and a")
    assert len(drawn) == 4 and not clock.waiting


def test_any_other_state_is_computed_by_another_thread(clock):
    threads = []
    figure, _ = explorer(lambda number: threads.append(threading.current_thread()))
    figure.controls["number"].value = 7
    assert shown(figure) == ("<p>0a</p>", "Computing …")
    clock.fire().result(30)
    assert shown(figure) == ("<p>7a</p>", "7 and a")
    assert threads[-1] is not threading.current_thread()


def test_a_slider_on_its_way_asks_for_one_computation(clock):
    figure, drawn = explorer()
    for number in (3, 4, 5, 6):
        figure.controls["number"].value = number
    clock.fire().result(30)
    assert drawn[4:] == [(6, "a")]
    assert shown(figure) == ("<p>6a</p>", "6 and a")


@pytest.mark.parametrize("then", [5, 2])
def test_a_result_that_is_no_longer_wanted_is_never_shown(clock, then):
    begun, go = threading.Event(), threading.Event()

    def draw(number):
        if number == 3:
            begun.set()
            assert go.wait(30)

    figure, drawn = explorer(draw)
    seen = []
    figure.picture.observe(lambda change: seen.append(change.new), "value")
    figure.controls["number"].value = 3
    late = clock.fire()
    assert begun.wait(30)
    figure.controls["number"].value = then  # computed, or known
    newest = clock.fire()
    go.set()
    for future in filter(None, (late, newest)):
        future.result(30)
    assert (3, "a") in drawn
    assert seen == [f"<p>{then}a</p>"]
    assert figure.words.value == f"{then} and a"


def test_a_request_overtaken_while_it_waits_its_turn_is_not_computed(clock):
    go = threading.Event()
    figure, drawn = explorer(lambda number: number != 3 or go.wait(30))
    futures = []
    for number in (3, 4, 5):  # 4 waits behind 3, and 5 comes before its turn
        figure.controls["number"].value = number
        futures.append(clock.fire())
    go.set()
    for future in futures:
        future.result(30)
    assert (4, "a") not in drawn
    assert shown(figure) == ("<p>5a</p>", "5 and a")


def test_an_error_is_shown_and_the_next_state_drawn(clock):
    def draw(number):
        if number == 3:
            raise ValueError("number must not be <3>")

    figure, _ = explorer(draw)
    figure.controls["number"].value = 3
    clock.fire().result(30)
    assert shown(figure) == ("", "ValueError: number must not be &lt;3&gt;")
    figure.controls["number"].value = 4
    clock.fire().result(30)
    assert shown(figure) == ("<p>4a</p>", "4 and a")


IN_A_KERNEL = """
import threading, ipywidgets
from helpers.explorer import Explorer, Frame
go, drawn = threading.Event(), []
def draw(k):
    drawn.append(k)
    if k == 7:
        go.wait(60)
    return Frame(f"<p>{k}</p>", f"k is {k}")
figure = Explorer(draw, {"k": ipywidgets.SelectionSlider(options=range(10))}, {"k": (0, 1)})
print(figure.controls["k"].model_id, figure.words.model_id)
"""


def test_in_a_real_kernel_the_page_gets_the_newest_state_and_the_kernel_stays_free():
    manager, client = start_new_kernel(kernel_name="python3", startup_timeout=120)
    messages = []

    def wait_for(found):
        while True:
            message = client.get_iopub_msg(timeout=60)
            messages.append(message)
            if found(message["msg_type"], message["content"]):
                return message["content"]

    def run(code):
        client.execute(code)
        return wait_for(lambda kind, content: kind in ("stream", "error")).get("text", "").split()

    def move(index):  # what the page sends when the slider has moved
        data = {"method": "update", "state": {"index": index}, "buffer_paths": []}
        client.shell_channel.send(client.session.msg("comm_msg", {"comm_id": slider, "data": data}))

    def said(kind, content):
        return kind == "comm_msg" and content["comm_id"] == words and content["data"]["state"].get("value")

    try:
        slider, words = run(IN_A_KERNEL)
        move(7)
        assert wait_for(said)["data"]["state"]["value"] == "Computing …"
        wait_until_drawn = "import time\nwhile 7 not in drawn: time.sleep(0.01)\nprint('free')"
        assert run(wait_until_drawn) == ["free"]  # the kernel answers while the figure computes
        move(9)
        assert run("go.set(); print('gone')") == ["gone"]
        wait_for(lambda kind, content: said(kind, content) == "k is 9")
        spoken = [said(message["msg_type"], message["content"]) for message in messages]
        assert "k is 7" not in spoken
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)


# The book's figures


@pytest.fixture(scope="module")
def model():
    network = random_network((3, 8, 8), 6, torch.float32, rng(0))
    return NormalizedModel(network, (0.5,) * 3, (0.5,) * 3, ("zero", "one", "two", "three", "four", "five"))


@pytest.fixture(scope="module")
def x():
    return torch.rand(1, 3, 8, 8, generator=rng(1))


@pytest.fixture(scope="module")
def y(model, x):
    return model(x).argmax(1)


def test_attack_explorer_shows_the_attack_that_its_controls_describe(clock, model, x, y):
    figure = widgets.attack_explorer(model, x, y)
    figure.controls["eps"].value, figure.controls["size"].value = 4, 0.5  # neither is stored
    figure.controls["step"].value = 7
    clock.fire().result(30)
    trace = []
    pgd(model, x, y, 4 / 255, steps=12, step_size=0.5 / 255, trace=trace)
    p = trace[7].logits.softmax(1)[0, y].item()
    assert f"Step 7: the model says {model.class_names[trace[7].logits.argmax()]}; " in figure.words.value
    assert f"p({model.class_names[y]}) = {p:.2g}." in figure.words.value
    assert "changes up to 3.50 levels" in figure.picture.value


def test_the_search_closes_in_on_what_fools_the_model_and_judges_the_guess(model, x, y):
    figure = widgets.find_smallest_eps(model, x, y)
    assert "the search begins" in figure.words.value
    figure.controls["guess"].value = 4.0
    figure.controls["step"].value = 7
    low, high, ratio = map(
        float, re.search(r"between ([\d.]+) and ([\d.]+)\..* ([\d.e+]+) times", figure.words.value).groups()
    )
    assert high / low == pytest.approx(2 ** (10 / 2**7), rel=0.02) and ratio == pytest.approx(4 / high, rel=0.06)
    for eps, fooled in ((low, False), (high, True)):
        if 1 / 60 < eps < 15:  # the ends of the range itself are not tried
            trace = []
            pgd(model, x, y, eps / 255, steps=10, trace=trace)
            assert any(at.fooled.item() for at in trace) == fooled


def test_the_slider_with_a_button_moves_with_it(model, x, y):
    figure = widgets.attack_explorer(model, x, y)
    (button,) = [child for child in figure.children if isinstance(child, ipywidgets.Play)]
    assert (button.min, button.max, button.value) == (0, 12, figure.controls["step"].index)


def test_target_chooser_offers_every_class_but_the_true_one_and_aims_at_the_chosen(clock, model, x, y):
    others = [k for k in range(6) if k != y]
    figure = widgets.target_chooser(model, x, y, others[:2], 0.3)
    assert sorted(value for _, value in figure.controls["target"].options) == others
    figure.controls["target"].value = others[3]
    clock.fire().result(30)
    trace = []
    pgd(model, x, y, 0.3, target=torch.tensor(others[3:4]), loss="cross_entropy", steps=20, trace=trace)
    p = trace[20].logits.softmax(1)[0]
    said, chosen = model.class_names[p.argmax()], model.class_names[others[3]]
    assert figure.words.value == f"Step 20: the model says {said}; p({chosen}) = {p[others[3]]:.2g}."


def test_networks_are_compared_each_under_its_own_attack(clock):
    images, y = torch.rand(12, 1, 8, 8, generator=rng(2)), torch.arange(12) % 3
    networks = {
        name: random_network((1, 8, 8), 3, torch.float32, rng(seed)) for seed, name in enumerate(["one", "two"])
    }
    figure = widgets.compare_networks(networks, images, y, show=4)
    figure.controls["eps"].value = 0.01
    clock.fire().result(30)
    wrong = [
        f"{name} {int((network(pgd(network, images, y, 0.01, steps=20)).argmax(1) != y).sum())}"
        for name, network in networks.items()
    ]
    assert figure.words.value == f"eps 0.01, picture 1 of 4 large. Wrong, of 12 digits: {', '.join(wrong)}."


def test_what_an_attack_sees_is_nothing_behind_a_rounding(clock):
    images = torch.rand(2, 1, 8, 8, generator=rng(2))
    network = random_network((1, 8, 8), 3, torch.float32, rng(0))
    y = network(images.round()).argmax(1)
    models = {"network": network, "rounded": lambda x: network(x.round())}
    figure = widgets.gradient_explorer(models, images, y, 0.1, steps=4)
    behind = [frame for wish, frame in figure.frames.items() if wish[0] == "rounded"]
    assert len(behind) == 2 * 3 and all("The gradient is zero." in frame.words for frame in behind)
    assert all("Margin" in frame.words for wish, frame in figure.frames.items() if wish[0] == "network")
    figure.controls["step"].value = 3  # not stored: drawn by the kernel
    clock.fire().result(30)
    trace = []
    pgd(network, images, y, 0.1, steps=4, keep="last", trace=trace)
    assert f"the model says {int(trace[3].logits[0].argmax())}." in figure.words.value


def test_every_slope_gives_a_bound_and_few_prove(clock):
    figure = widgets.slope_explorer()
    said = {
        wish: [
            float(number) for number in re.findall(r"is (-?[\d.]+\d), the true maximum (-?[\d.]+\d)", frame.words)[0]
        ]
        for wish, frame in figure.frames.items()
    }
    assert all(bound >= maximum for bound, maximum in said.values())
    assert said[1.0, 1.0, 0.0] == pytest.approx([1.40, -0.205], abs=0.01)  # by hand; intervals give 0.92
    assert "intervals +0.92" in figure.frames[1.0, 1.0, 0.0].html
    for eps, many in [(1.0, 1), (0.8, 6), (0.6, 8)]:
        assert sum("Below 0: proved." in frame.words for wish, frame in figure.frames.items() if wish[0] == eps) == many
    figure.controls["first"].value, figure.controls["second"].value = 0.45, 0.4  # not stored: drawn by the kernel
    clock.fire().result()
    assert "slopes 0.45 and 0.4" in figure.words.value


def test_a_search_is_shown_stage_by_stage_and_ends_with_its_verdict():
    proved = [Look(3, 9, 2, 1.5, -2.0), Look(3, 13, 1, 0.25, -1.0), Look(3, 15, 0, -0.5, -1.0)]
    figure = widgets.tree_explorer({"digit 3": proved, "digit 5": [Look(5, 9, 0, 2.0, 0.125)]})
    words = {wish: frame.words for wish, frame in figure.frames.items()}
    assert words["digit 3", 0] == (
        "digit 3, 0 nodes: the largest margin is at least -2 and at most 1.5. Not decided yet."
    )
    assert words["digit 3", 5].endswith("15 nodes: the largest margin is at least -1 and at most -0.5. Proved.")
    assert words["digit 5", 5].endswith("at least 0.12 and at most 2. Broken.")
    assert figure.frames["digit 3", 5].html.count("<circle") == 2 * 4
    with pytest.raises(ValueError, match="searches must hold at least one look"):
        widgets.tree_explorer({"digit 3": []})


def png(color: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (300, 260), color).save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture
def photograph(monkeypatch):
    class Colour(nn.Module):  # says the colour of which there is most
        def forward(self, x):
            return 9 * torch.cat([x.mean((2, 3)), -9 + 0 * x.mean((2, 3))], 1)

    names = ("red", "green", "blue", "none", "of", "these")
    model = NormalizedModel(Colour().requires_grad_(False), (0.0,) * 3, (1.0,) * 3, names)
    model.unused = nn.Parameter(torch.zeros(1))
    return widgets.Photograph(model)


def put(figure, name, content):
    """Do what the upload button does when a file was chosen, in either version of ipywidgets."""
    facts = {"name": name, "type": "", "size": len(content), "last_modified": 0}
    if ipywidgets.__version__.startswith("7."):
        counter = figure.upload._counter + 1
        figure.upload.set_state({"metadata": [facts], "data": [memoryview(content)], "_counter": counter})
    else:
        figure.upload.set_state({"value": [facts | {"content": memoryview(content)}]})


def test_own_photograph_is_classified_and_attacked(clock, photograph):
    put(photograph, "mine.png", png("#102090"))
    clock.fire().result(30)
    assert photograph.words.value == "The model says blue."
    photograph.controls["eps"].value = 8
    clock.fire().result(30)
    assert photograph.words.value == "The model says blue; attacked, blue."
    assert "changes up to 8.00 levels" in photograph.picture.value
    put(photograph, "another.png", png("#d02010"))
    clock.fire().result(30)
    assert photograph.words.value.startswith("The model says red;")
    assert [label for label, _ in photograph.controls["name"].options][-2:] == ["mine.png", "another.png"]


def test_the_same_file_name_with_another_picture_is_another_picture(clock, photograph):
    for color, said in [("#102090", "blue"), ("#109020", "green")]:
        put(photograph, "mine.png", png(color))
        clock.fire().result(30)
        assert photograph.words.value == f"The model says {said}."
    assert [label for label, _ in photograph.controls["name"].options].count("mine.png") == 1


def test_what_is_no_picture_is_refused_in_words(clock, photograph):
    put(photograph, "notes.txt", b"not a picture")
    assert "ValueError: source must be a complete image file" in photograph.words.value
    assert not clock.waiting


def test_figures_attack_a_copy_and_leave_the_model_as_it_is(clock, model, x, y):
    model.train()
    widgets.attack_explorer(model, x, y)
    assert model.training and all(p.requires_grad for p in model.parameters())
    model.eval()


HISTORY = History(loss=[1.0, 0.5], error=[0.4, 0.3], validation=[0.35, 0.25], kept=2)


def test_live_curve_shows_the_last_history_that_it_was_given_and_says_it_in_words():
    curve = widgets.LiveCurve(epochs=5)
    assert curve.value == ""
    values = []
    for history in (History([1.0], [0.4], []), HISTORY):
        curve.update(history)
        values.append(curve.value)
        alt = re.match(r'<svg role="img" aria-label="([^"]+)"', curve.value)[1]
        n = len(history.error)
        assert f"After epoch {n} of 5: training error {100 * history.error[-1]:.1f} %" in alt
        assert ("validation error 25.0 %" in alt) == bool(history.validation)
    assert values[0] != values[1]


def test_live_curve_grows_with_training():
    curve, seen = widgets.LiveCurve(epochs=2), []
    curve.observe(lambda change: seen.append(change.new), "value")
    x, y = torch.linspace(0, 1, 10)[:, None], torch.arange(10) // 5
    train(nn.Linear(1, 2), x, y, epochs=2, validate=lambda model: 0.5, on_epoch=curve.update)
    assert ["After epoch 1 of 2" in value for value in seen] == [True, False]
    assert "After epoch 2 of 2" in curve.value


# Where they stand


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_stored_states_of_a_chapter_are_light(path):
    state = json.loads(path.read_text(encoding="utf-8"))["metadata"].get("widgets", {})
    assert len(json.dumps(state)) < LIMIT


@pytest.mark.skipif(ipywidgets.__version__.startswith("7."), reason="this is the run under ipywidgets 7")
def test_all_this_holds_under_the_ipywidgets_of_colab(tmp_path):
    install = ["uv", "pip", "install", "-q", "--no-deps", "--python", sys.executable, "--target", str(tmp_path)]
    subprocess.run([*install, "ipywidgets==7.7.1", "ipython_genutils==0.2.0"], check=True)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])}
    version = "import ipywidgets; print(ipywidgets.__version__)"
    for command, answer in [(["-c", version], "7.7.1"), (["-m", "pytest", "-q", __file__], " passed")]:
        run = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=ROOT)
        assert run.returncode == 0 and answer in run.stdout, run.stdout + run.stderr
