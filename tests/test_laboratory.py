"""The laboratory, in the reader's place: a browser. What it computes is compared with PyTorch, and its page is used."""

import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, serve
from PIL import Image
from test_site import AXE, DARK, visit

from helpers.attacks import cross_entropy, pgd, soft_margin
from helpers.data import digits, load_image, photograph
from helpers.models import class_index, digit_network, load_classifier

pytestmark = [pytest.mark.site, pytest.mark.xdist_group("laboratory")]
PAGE = "book/laboratory.html"
ASK = "const {ask} = await import(new URL('../_static/laboratory/page.js', location)); "
SETTINGS = {"norm": "linf", "eps": 2 / 255, "stepSize": 0.1, "targeted": False, "randomStart": False, "seed": 0}
DONE = "/^(Done|Stopped)/.test(document.getElementById('lab-attack-status').textContent)"


@pytest.fixture(scope="module")
def classifier() -> torch.nn.Module:
    return load_classifier(device="cpu")


@pytest.fixture
def laboratory(browser, site: str):
    """Open the page; go wrong where anything on it went wrong, or asked for what a page must not."""
    page, wrong = visit(browser, f"{site}/{PAGE}", accept_downloads=True, permissions=[])
    sent: list[str] = []
    page.context.on("request", lambda request: request.method != "GET" and sent.append(request.url))
    page.set_default_timeout(120_000)
    yield page
    page.context.close()
    assert not wrong + sent


def load(page, bench: str = "") -> None:
    """Press the button that loads a bench, and wait until it is there."""
    page.click(f"#lab-load{bench}")
    page.wait_for_function(f"document.getElementById('lab-load{bench}').hidden")
    if not bench:
        page.wait_for_function("/says:/.test(document.getElementById('lab-attack-status').textContent)")


def numbers(array) -> list[float]:
    return np.asarray(array, dtype=np.float32).ravel().tolist()


def answer(page, x: torch.Tensor, goal: int, loss: str) -> dict[str, torch.Tensor]:
    """Ask the page's worker for the logits and the gradient at an image."""
    code = (
        f"async ([x, settings]) => {{ {ASK} const a = await ask('answer', {{image: Float32Array.from(x), settings}});"
    )
    code += " return {logits: [...a.logits], gradient: [...a.gradient]}; }"
    found = page.evaluate(code, [numbers(x), SETTINGS | {"goal": goal, "loss": loss}])
    return {name: torch.tensor(values) for name, values in found.items()}


def status(page, bench: str = "attack") -> str:
    return page.inner_text(f"#lab-{bench}-status")


def run(page) -> str:
    """Press "Attack" and return what the page says at the end."""
    page.click("#lab-run")
    page.wait_for_function("document.getElementById('lab-run').disabled")
    page.wait_for_function(DONE)
    return status(page)


def saved(page) -> bytes:
    """Save the picture and return the file."""
    with page.expect_download() as download:
        page.click("#lab-save")
    return Path(download.value.path()).read_bytes()


def judge(page, content: bytes, name: str = "x_adv.png") -> str:
    page.set_input_files("#lab-saved", {"name": name, "mimeType": "image/png", "buffer": content})
    page.wait_for_function(
        "/saved picture|pixels|no picture/.test(document.getElementById('lab-attack-status').textContent)"
    )
    return status(page)


# What it computes


def test_logits_and_gradient_are_pytorchs(laboratory, classifier) -> None:
    load(laboratory)
    rounded = load_classifier(device="cpu")
    for layer in rounded.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.weight.data = layer.weight.data.half().float()
    for name, loss in (("coffee", "cross_entropy"), ("chelsea", "soft_margin"), ("rocket", "soft_margin")):
        x = photograph(name).requires_grad_()
        y = classifier(x).argmax(1)
        found = answer(laboratory, x.detach(), int(y), loss)
        for model, logits_off, gradient_off, signs in ((rounded, 0.01, 0.1, 0.98), (classifier, 0.05, 0.3, 0.9)):
            logits = model(x)
            value = {"cross_entropy": cross_entropy, "soft_margin": soft_margin}[loss](logits, y)
            grad = torch.autograd.grad(value.sum(), x)[0].flatten()
            # The graph's gradient is that of log(sum of exp of the others) - own, for either: same direction.
            ours = found["gradient"] * (grad.norm() / found["gradient"].norm())
            assert (found["logits"] - logits[0]).abs().max() < logits_off
            assert found["logits"].argmax() == y
            assert (ours - grad).norm() < gradient_off * grad.norm()
            assert (ours.sign() == grad.sign()).float().mean() > signs


def test_the_network_for_digits_is_pytorchs(laboratory) -> None:
    load(laboratory, "-digits")
    network = digit_network(3)
    data = digits()
    x, y = data.x_test[:100].clone().requires_grad_(), data.y_test[:100]
    logits = network(x)
    gradients = torch.autograd.grad(F.cross_entropy(logits, y, reduction="sum"), [x, *network.parameters()])

    def unshuffled(kernel):  # the book's first layer sees squares of 2 x 2 pixels as channels: the same function
        return F.pixel_shuffle(kernel, 2)

    weights = [p.detach() for p in network.parameters()]
    weights[0] = unshuffled(weights[0])
    code = f"""async ([which, image, classes, weights]) => {{ {ASK}
      const found = await ask('graph', {{which, image: Float32Array.from(image), classes: Uint8Array.from(classes),
        weights: weights.map((w) => Float32Array.from(w))}});
      return Object.fromEntries(Object.entries(found).map(([name, values]) => [name, [...values]])); }}"""
    inputs = [numbers(x.detach()), y.tolist(), [numbers(w) for w in weights]]
    expected = {"gradient": gradients[0]} | {f"gradient_{i}": g for i, g in enumerate(gradients[1:])}
    expected["gradient_0"] = unshuffled(expected["gradient_0"])
    for which in ("attack", "train"):
        found = {name: torch.tensor(v) for name, v in laboratory.evaluate(code, [which, *inputs]).items()}
        assert torch.allclose(found.pop("logits"), logits.flatten(), atol=1e-5)
        assert len(found) == (1 if which == "attack" else 8)
        for name, values in found.items():
            assert torch.allclose(values, expected[name].flatten(), atol=1e-3 * float(expected[name].abs().max())), name


def test_perturbation_sets_are_those_of_the_helpers(laboratory) -> None:
    from helpers.perturbations import L2, Linf

    x = photograph("rocket")[..., :20, 100:120]
    delta = 0.5 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    code = """async ([x, delta, norm, eps]) => {
      const {project} = await import(new URL('../_static/laboratory/attack.js', location));
      return [...project(Float32Array.from(delta), Float32Array.from(x), {norm, eps})]; }"""
    for norm, kind, eps in (("linf", Linf, 0.03), ("l2", L2, 0.5), ("l2", L2, 6.0), ("l2", L2, 20.0)):
        found = torch.tensor(laboratory.evaluate(code, [numbers(x), numbers(delta), norm, eps])).view_as(x)
        assert torch.allclose(found, kind(eps).project(delta, x), atol=1e-5), (norm, eps)


# What its reader does


def test_coffee_is_fooled_and_the_saved_file_still_fools_pytorch(laboratory, classifier) -> None:
    load(laboratory)
    assert "espresso" in status(laboratory)
    said = run(laboratory)
    assert "The attack succeeded" in said and "after 30 steps" in said
    content = saved(laboratory)
    x_adv = (
        torch.from_numpy(np.asarray(Image.open(io.BytesIO(content)).convert("RGB")).copy()).permute(2, 0, 1)[None] / 255
    )
    p = classifier(x_adv).softmax(1)[0]
    assert p[class_index("espresso")] < 0.01
    assert (x_adv - photograph("coffee")).abs().max() <= 2.51 / 255
    told = judge(laboratory, content)
    assert classifier.class_names[int(p.argmax())] in told and "Still adversarial" in told
    original = io.BytesIO()
    Image.fromarray((photograph("coffee")[0] * 255).round().byte().permute(1, 2, 0).numpy()).save(original, "png")
    assert "Not adversarial" in judge(laboratory, original.getvalue())
    laboratory.click("#lab-noise")
    laboratory.wait_for_function("/10 draws/.test(document.getElementById('lab-attack-status').textContent)")
    assert "in 10 of them" in status(laboratory)


def test_a_target_by_name_from_the_address(browser, site: str, classifier) -> None:
    page, wrong = visit(browser, f"{site}/{PAGE}?goal=targeted&target=Airliner&loss=cross_entropy")
    page.set_default_timeout(120_000)
    load(page)
    p = re.search(r"says airliner \(probability ([\d.]+)\)", run(page))
    assert p and float(p[1]) > 0.99, status(page)
    code = page.text_content("#lab-python")
    said: list[str] = []
    exec(code, {"print": lambda *words: said.append(" ".join(map(str, words)))})  # the page's own five lines
    assert said[-1].startswith("airliner")
    page.fill("#lab-target", "no such thing")
    page.click("#lab-run")
    page.wait_for_function("/No ImageNet class/.test(document.getElementById('lab-attack-status').textContent)")
    assert not wrong
    page.context.close()


def test_the_smallest_eps_is_bracketed(laboratory, classifier) -> None:
    load(laboratory)
    laboratory.click("#lab-find")
    laboratory.wait_for_function("/Guess first/.test(document.getElementById('lab-find-status').textContent)")
    laboratory.fill("#lab-guess", "1")
    laboratory.click("#lab-find")
    laboratory.wait_for_function("/Your guess/.test(document.getElementById('lab-find-status').textContent)")
    told = status(laboratory, "find")
    high, low = (float(end) for end in re.findall(r"[\d.]*\d", told)[:2])
    assert "times too large" in told
    # The same attack in Python: it succeeds above the bracket and fails below it.
    x = photograph("coffee")
    y = classifier(x).argmax(1)
    found = [classifier(pgd(classifier, x, y, eps / 255, steps=20)).argmax(1) != y for eps in (0.8 * low, 1.2 * high)]
    assert found == [False, True], (low, high)


def test_stop_stops_within_a_step(laboratory) -> None:
    load(laboratory)
    laboratory.fill("#lab-steps", "500")
    laboratory.click("#lab-run")
    steps = "Number(/after (\\d+) steps/.exec(document.getElementById('lab-loss-words').textContent)?.[1] ?? 0)"
    laboratory.wait_for_function(f"{steps} >= 3")
    at = laboratory.evaluate(f"() => {{ const at = {steps}; document.getElementById('lab-stop').click(); return at; }}")
    laboratory.wait_for_function(DONE)
    assert int(re.search(r"Stopped after (\d+) steps", status(laboratory))[1]) <= at + 1


def test_settings_are_locked_while_it_runs_and_free_afterwards(laboratory) -> None:
    load(laboratory)
    laboratory.fill("#lab-steps", "8")
    locked = "['run', 'step', 'noise', 'find', 'save', 'reset', 'eps', 'steps', 'picture', 'goal']"
    states = f"() => {locked}.map((id) => document.getElementById(`lab-${{id}}`).disabled)"
    at_once = laboratory.evaluate(
        f"() => {{ const run = document.getElementById('lab-run'); run.click(); run.click(); return ({states})(); }}"
    )
    assert all(at_once)
    laboratory.wait_for_function(DONE)
    assert "Done after 8 steps" in status(laboratory)
    assert not any(laboratory.evaluate(states))
    laboratory.fill("#lab-eps", "")  # and an error leaves it free, too
    for pressed in ("#lab-run", "#lab-step", "#lab-noise"):
        laboratory.click(pressed)
        laboratory.wait_for_function("/eps must be/.test(document.getElementById('lab-attack-status').textContent)")
        assert not any(laboratory.evaluate(states))
    laboratory.fill("#lab-eps", "2")
    laboratory.click("#lab-step")
    laboratory.wait_for_function("/^Step 1: /.test(document.getElementById('lab-attack-status').textContent)")


def test_another_picture_is_attacked_for_its_own_class(laboratory, classifier) -> None:
    load(laboratory)
    laboratory.fill("#lab-steps", "2")
    laboratory.fill("#lab-eps", "0.01")
    own = classifier.class_names[int(classifier(photograph("camera")).argmax())]
    laboratory.evaluate(
        """() => { const picture = document.getElementById('lab-picture'); picture.value = 'camera';
          picture.dispatchEvent(new Event('change', {bubbles: true})); document.getElementById('lab-run').click(); }"""
    )
    laboratory.wait_for_function("!document.getElementById('lab-run').disabled")
    assert own in status(laboratory)
    said = run(laboratory)
    assert own in said and "has not succeeded" in said


def test_a_search_that_is_stopped_claims_only_what_it_has_tried(laboratory) -> None:
    load(laboratory)
    laboratory.fill("#lab-guess", "1")
    laboratory.evaluate("document.getElementById('lab-find').click(); document.getElementById('lab-find-stop').click()")
    laboratory.wait_for_function("/^Stopped/.test(document.getElementById('lab-find-status').textContent)")
    assert status(laboratory, "find") == "Stopped: no try has ended."
    laboratory.click("#lab-find")
    laboratory.wait_for_selector("#lab-tries tr")
    laboratory.click("#lab-find-stop")
    laboratory.wait_for_function("/^Stopped/.test(document.getElementById('lab-find-status').textContent)")
    tried = [row.split("\t")[:2] for row in laboratory.inner_text("#lab-tries").splitlines()]
    fooled = [float(eps) for eps, result in tried if result.startswith("fooled")]
    assert f"fooled at {min(fooled):g}" in status(laboratory, "find")
    assert "guess" not in status(laboratory, "find")


def longest_task(browser, page, act: Callable[[], object]) -> float:
    """Return the milliseconds of the processor that the page's longest task takes while `act` runs.

    Not of the clock: on a busy machine the clock also counts what other processes do.
    """
    browser.start_tracing(page=page, categories=["toplevel", "disabled-by-default-devtools.timeline"])
    act()
    events = json.loads(browser.stop_tracing())["traceEvents"]
    named = [event for event in events if event["name"] == "thread_name"]
    pages = {(event["pid"], event["tid"]) for event in named if event["args"]["name"] == "CrRendererMain"}
    tasks = [event for event in events if event["name"] == "RunTask" and (event["pid"], event["tid"]) in pages]
    return max(task["tdur"] for task in tasks if "tdur" in task) / 1000


def test_the_page_never_stalls(laboratory, browser) -> None:
    load(laboratory)
    run(laboratory)  # scripts are compiled
    assert longest_task(browser, laboratory, lambda: run(laboratory)) < 50
    stall = "const from = performance.now(); while (performance.now() - from < 200);"  # would be seen
    assert longest_task(browser, laboratory, lambda: laboratory.evaluate(f"() => {{ {stall} }}")) > 50


def test_own_pictures_are_read_as_load_image_reads_them(laboratory) -> None:
    load(laboratory)
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize(
        (640, 431), Image.Resampling.BICUBIC
    )
    turned, see_through, tall = io.BytesIO(), io.BytesIO(), io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it by a quarter
    smooth.save(turned, "jpeg", exif=exif, quality=95)
    with_alpha = smooth.copy()
    with_alpha.putalpha(Image.linear_gradient("L").resize(smooth.size))
    with_alpha.save(see_through, "png")
    smooth.resize((150, 900)).convert("L").save(tall, "png")
    for picture in (turned, see_through, tall):
        content = picture.getvalue()
        found = laboratory.evaluate(
            """async (bytes) => {
              const {imageOf} = await import(new URL('../_static/laboratory/picture.js', location));
              return [...await imageOf(new Blob([Uint8Array.from(bytes)]))]; }""",
            list(content),
        )
        off = (torch.tensor(found) - load_image(content).flatten()).abs() * 255
        assert off.mean() < 1, off.mean()
    laboratory.set_input_files("#lab-own", {"name": "a.jpg", "mimeType": "image/jpeg", "buffer": turned.getvalue()})
    laboratory.wait_for_function("/your picture.jpg/.test(document.getElementById('lab-python').textContent)")


def test_the_keyboard_compares_with_the_original(laboratory) -> None:
    load(laboratory)
    laboratory.click("#lab-run")
    laboratory.wait_for_function(DONE)
    picture = "() => document.getElementById('lab-image').toDataURL()"
    attacked = laboratory.evaluate(picture)
    laboratory.focus("#lab-compare")
    laboratory.keyboard.down(" ")
    assert laboratory.get_attribute("#lab-compare", "aria-pressed") == "true"
    original = laboratory.evaluate(picture)
    laboratory.keyboard.up(" ")
    assert laboratory.evaluate(picture) == attacked != original
    shown = Image.open(io.BytesIO(laboratory.locator("#lab-image").screenshot()))
    assert shown.size[0] > 100


def test_the_robust_network_withstands_what_the_standard_one_does_not(laboratory) -> None:
    load(laboratory, "-digits")
    laboratory.fill("#lab-epochs", "4")
    laboratory.click("#lab-train")
    laboratory.wait_for_function(
        "/^Done/.test(document.getElementById('lab-train-status').textContent)", timeout=280_000
    )
    errors = {
        f"{name}-{which}": float(laboratory.inner_text(f"#lab-{name}-{which}").rstrip(" %"))
        for name in ("standard", "robust")
        for which in ("clean", "broken")
    }
    assert errors["robust-broken"] < errors["standard-broken"] / 2, errors
    assert errors["standard-clean"] < 10 and errors["robust-clean"] < 10, errors
    # The same network, judged by PyTorch.
    network = digit_network()
    code = f"async () => {{ {ASK} return (await ask('weights', {{name: 'robust'}})).map((w) => [...w]); }}"
    weights = [torch.tensor(w) for w in laboratory.evaluate(code)]
    weights[0] = F.pixel_unshuffle(weights[0].view(16, 1, 4, 4), 2)
    for parameter, weight in zip(network.parameters(), weights, strict=True):
        parameter.data = weight.view_as(parameter)
    data = digits()
    wrong = (network(data.x_test).argmax(1) != data.y_test).float().mean()
    assert wrong < 0.12  # partly digits that it has seen: the splits differ
    box = laboratory.locator("#lab-pad").bounding_box()
    laboratory.locator("#lab-pad").scroll_into_view_if_needed()
    box = laboratory.locator("#lab-pad").bounding_box()
    laboratory.mouse.move(box["x"] + box["width"] / 2, box["y"] + 0.15 * box["height"])
    laboratory.mouse.down()
    laboratory.mouse.move(box["x"] + box["width"] / 2, box["y"] + 0.85 * box["height"], steps=10)
    laboratory.mouse.up()
    laboratory.wait_for_function("/^1 /.test(document.getElementById('lab-robust-reads').textContent)")
    laboratory.click("#lab-attack-digit")
    laboratory.wait_for_function("/network/.test(document.getElementById('lab-digit-status').textContent)")


# What it loads, and what goes wrong


def test_nothing_is_loaded_before_the_press_and_a_second_visit_loads_nothing(browser, site: str) -> None:
    asked: list[str] = []
    context = browser.new_context()
    for visits in range(2):
        page = context.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.goto(f"{site}/{PAGE}", wait_until="networkidle")
        assert not [url for url in asked if ".bin" in url or "ort" in url.split("/")[-1]]
        label = page.inner_text("#lab-load")
        assert "stored on this device" in label if visits else re.search(r"\d+\.\d MB", label)
        load(page)
        assert bool([url for url in asked if ".bin" in url]) == (visits == 0)
        asked.clear()
        page.close()
    context.close()


@pytest.mark.parametrize("width", [1280, 360])
def test_the_used_page_is_for_everybody(browser, site: str, width: int) -> None:
    page, wrong = visit(browser, f"{site}/{PAGE}", viewport={"width": width, "height": 800}, color_scheme="light")
    page.set_default_timeout(120_000)
    load(page)
    load(page, "-digits")
    page.fill("#lab-steps", "3")
    run(page)
    page.locator("#lab-attack details").evaluate_all("all => all.forEach((details) => { details.open = true; })")
    assert page.evaluate("document.scrollingElement.scrollWidth") <= width
    page.evaluate("scrollTo(0, 0)")
    page.wait_for_function("!document.getElementById('pst-back-to-top')?.checkVisibility()")
    page.add_script_tag(path=ROOT / "node_modules/axe-core/axe.min.js")
    wrong += page.evaluate(AXE, {})
    page.emulate_media(color_scheme="dark", reduced_motion="reduce")
    page.wait_for_function(DARK)
    wrong += page.evaluate(AXE, {})
    assert not wrong
    page.context.close()


def test_what_goes_wrong_becomes_a_sentence(browser, site: str) -> None:
    page, _ = visit(browser, f"{site}/{PAGE}")
    page.route("**/classifier.bin*", lambda route: route.fulfill(status=404, body=""))
    page.click("#lab-load")
    page.wait_for_function(
        "/has no file classifier.bin/.test(document.getElementById('lab-attack-status').textContent)"
    )
    assert page.is_enabled("#lab-load")
    page.unroute("**/classifier.bin*")
    load(page)  # and it can be tried again
    assert "no picture" in judge(page, b"not a picture at all")
    small = io.BytesIO()
    Image.new("RGB", (20, 10)).save(small, "png")
    assert "20 x 10" in judge(page, small.getvalue())
    page.fill("#lab-eps", "-1")
    page.click("#lab-run")
    page.wait_for_function("/eps must be above 0/.test(document.getElementById('lab-attack-status').textContent)")
    page.context.close()


def test_an_old_browser_is_told_so(browser, site: str) -> None:
    page, _ = visit(browser, f"{site}/{PAGE}")
    script = (ROOT / "book/assets/laboratory/worker.js").read_text()
    page.route(
        "**/worker.js",
        lambda route: route.fulfill(
            body=f"WebAssembly.validate = () => false;\n{script}", content_type="text/javascript"
        ),
    )
    page.click("#lab-load")
    page.wait_for_function("/too old/.test(document.getElementById('lab-attack-status').textContent)")
    page.context.close()


def test_figures_open_it_with_their_settings(browser, site: str) -> None:
    page, wrong = visit(browser, f"{site}/notebooks/03_untargeted_pgd.html")
    page.goto(page.evaluate("document.querySelector('a[href*=step_size]').href"), wait_until="networkidle")
    assert page.input_value("#lab-step-size") == "0.25" and page.input_value("#lab-loss") == "cross_entropy"
    assert "laboratory.html?" in page.url and not wrong
    page.context.close()


def test_works_below_any_path(browser) -> None:
    from conftest import SITE

    server, home = serve(SITE, below="/a/book/")
    page, wrong = visit(browser, f"{home}/a/book/{PAGE}")
    load(page)
    assert "espresso" in status(page) and not wrong
    page.context.close()
    server.shutdown()
