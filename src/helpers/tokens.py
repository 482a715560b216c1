"""Text as tokens: a classifier of files that reads bytes, and what an attack on bytes needs.

The classifier is the network of Magika (Fratantonio et al. 2025), with which Google tells file types apart. Its weights
lie in the wheel `magika` on PyPI (Apache-2.0) as an ONNX file. They are read from there with the package `onnx`;
nothing of `magika` is imported, and its runtime is not needed.
"""

import importlib.util
import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helpers._validation import check_count

BEGIN = END = 1024  # how many tokens the classifier sees of each end of a file
BLOCK = 4096  # bytes that are read at each end before white space is stripped
LEAST = 8  # bytes without which Magika does not ask the network
PADDING = 256  # the token of "no byte"
INSTALL = "pip install --no-deps magika==1.0.3 and pip install onnx"


def tokens(content: bytes) -> Tensor:
    """Return what the classifier sees of a file: its first and its last 1,024 bytes as numbers, (1, 2048), int64.

    White space is stripped before the first and after the last byte. What is missing is token 256: after the bytes in
    the first half, before them in the second. The bytes of a file shorter than 2,048 bytes may be in both halves.

    Args:
        content: the whole file, at least 8 bytes of it without the white space at its beginning.

    Raises:
        TypeError: `content` is not bytes.
        ValueError: there are fewer bytes than that; Magika itself answers such files by a rule, without its network.
    """
    if not isinstance(content, bytes | bytearray):
        raise TypeError(f"content must be bytes; got {type(content).__name__}. Text: text.encode()")
    first, last = content[:BLOCK].lstrip()[:BEGIN], content[-BLOCK:].rstrip()[-END:]
    if len(first) < LEAST:
        raise ValueError(f"content must have at least {LEAST} bytes after leading white space; got {len(first)}")
    row = [*first, *[PADDING] * (BEGIN - len(first) + END - len(last)), *last]
    return torch.tensor([row])


def every_string(alphabet: Sequence[int], length: int, most: int = 1_000_000) -> Tensor:
    """Return all strings of `length` tokens from an alphabet, (len(alphabet) ** length, length), int64.

    Args:
        alphabet: different tokens. length: of each string, at least 1. most: the number of strings allowed.

    Raises:
        TypeError: `length` or `most` is not a whole number.
        ValueError: the alphabet is empty or holds a token twice, or there are more than `most` strings: the message
            says how many.
    """
    check_count(length, "length")
    check_count(most, "most")
    letters = list(alphabet)
    if not letters or len(set(letters)) < len(letters):
        raise ValueError(f"alphabet must hold at least one token, and none twice; got {len(letters)} tokens")
    count = len(letters) ** length
    if count > most:
        told = f"{count:,}" if count < 10**15 else f"about {_power_of_ten(len(letters), length)}"
        raise ValueError(
            f"length must leave at most {most:,} strings to try; {length} tokens of {len(letters)} make {told}"
        )
    return torch.tensor(list(product(letters, repeat=length)))


def _power_of_ten(base: int, exponent: int) -> str:
    return f"10^{len(str(base**exponent)) - 1}"


class ByteClassifier(nn.Module):
    """The network of Magika: 2,048 tokens in, logits over 214 types of file out.

    Four neighbouring tokens, embedded in 64 numbers each, are one of 512 places with 256 channels. The first layer norm
    runs over the places, not the channels; then come a convolution over five places, the maximum over all, a layer
    norm as usual and a linear layer.

    Attributes:
        class_names: the 214 types, in the order of the logits.
        thresholds: for each of them the probability from which the product trusts the network.
        texts: the types that are text, for the product's way out.
    """

    def __init__(self, class_names: Sequence[str], thresholds: Sequence[float], texts: Sequence[str]) -> None:
        super().__init__()
        self.class_names, self.thresholds, self.texts = tuple(class_names), tuple(thresholds), frozenset(texts)
        self.overwrite: dict[str, str] = {}
        self.embed = nn.Linear(257, 64)
        self.scale, self.shift = nn.Parameter(torch.ones(512, 1)), nn.Parameter(torch.zeros(512, 1))
        self.conv = nn.Conv1d(256, 512, kernel_size=5)
        self.norm = nn.LayerNorm(512, eps=1e-6)
        self.head = nn.Linear(512, len(self.class_names))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, 214).

        Args:
            x: tokens (N, 2048), int64, 0 to 256; or one weight for each token, one-hot say, (N, 2048, 257), floating
                point: in that form the network has a gradient.

        Raises:
            ValueError: `x` has another shape or dtype, or a token is outside 0 to 256.
        """
        places = x.shape[1:] == (2048,) and x.dtype == torch.int64
        if not places and not (x.shape[1:] == (2048, 257) and x.is_floating_point()):
            raise ValueError(
                "x must be tokens (N, 2048), int64, or weights of tokens (N, 2048, 257), floating point; "
                f"got {tuple(x.shape)} and {x.dtype}. A file: tokens(content)."
            )
        if places and x.numel() and not (x.min() >= 0 and x.max() <= PADDING):
            raise ValueError(f"x must hold tokens from 0 to {PADDING}; got {x.min()} to {x.max()}")
        weight = self.embed.weight
        embedded = F.embedding(x, weight.T) + self.embed.bias if places else self.embed(x.to(weight.dtype))
        blocks = F.gelu(embedded, approximate="tanh").reshape(len(x), 512, 256)
        spread, mean = torch.var_mean(blocks, 1, correction=0, keepdim=True)
        normed = (blocks - mean) / (spread + 1e-6).sqrt() * self.scale + self.shift
        found = F.gelu(self.conv(normed.mT), approximate="tanh").amax(2)
        return self.head(self.norm(found))

    def product(self, logits: Tensor) -> list[str]:
        """Return what Magika, the product, answers for logits (N, 214) in its standard mode.

        It is the most probable type where that is probable enough, and otherwise "txt" or "unknown".
        """
        answers = []
        for p, k in zip(*(part.tolist() for part in logits.softmax(1).max(1)), strict=True):
            name = self.overwrite.get(self.class_names[k], self.class_names[k])
            sure = p >= self.thresholds[k]
            answers.append(name if sure else "txt" if name in self.texts else "unknown")
        return answers


def load_byte_classifier(device: torch.device | str | None = None) -> ByteClassifier:
    """Load Magika's network, in eval mode and with frozen parameters, from the installed wheel `magika`.

    Args:
        device: where to put it; by default a GPU if there is one, else the CPU.

    Raises:
        ModuleNotFoundError: magika or onnx is not installed; the message says how to install them.
        RuntimeError: the installed wheel holds another network than that of magika 1.0.3.
    """
    for name in ("magika", "onnx"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"{name} must be installed for the classifier of bytes: {INSTALL}", name=name)
    import onnx
    from onnx import numpy_helper

    folder = Path(importlib.util.find_spec("magika").submodule_search_locations[0])
    try:
        config = json.loads((folder / "models/standard_v3_3/config.min.json").read_text())
        graph = onnx.load(folder / "models/standard_v3_3/model.onnx").graph
        kinds = json.loads((folder / "config/content_types_kb.min.json").read_text())
        names = config["target_labels_space"]
        usual = config["medium_confidence_threshold"]
        thresholds = [config["thresholds"].get(name, usual) for name in names]
        model = ByteClassifier(names, thresholds, [name for name, kind in kinds.items() if kind["is_text"]])
        model.overwrite = config["overwrite_map"]
        # Names are the converter's; the end of each says which layer it belongs to.
        values = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.initializer}
        short = {name.removeprefix("jax2tf_get_logits_/").split("MagikaV2/")[-1]: t for name, t in values.items()}
        state = {
            "embed.weight": short["Const:0"].T,
            "embed.bias": short["Dense_0/Reshape:0"].flatten(),
            "scale": short["LayerNorm_0/Reshape_2:0"][0],
            "shift": short["LayerNorm_0/Reshape_3:0"][0],
            "conv.weight": short["Conv_0/transpose_3:0"][..., 0],
            "conv.bias": short["const_fold_opt__209"].flatten(),
            "norm.weight": short["LayerNorm_1/Reshape_2:0"][0],
            "norm.bias": short["LayerNorm_1/Reshape_3:0"][0],
            "head.weight": short["Const_24:0"].T,
            "head.bias": short["Dense_1/Reshape:0"].flatten(),
        }
        model.load_state_dict({name: t.contiguous() for name, t in state.items()})
    except (OSError, KeyError, RuntimeError) as error:
        raise RuntimeError(f"the installed magika is not version 1.0.3 ({error}): {INSTALL}") from error
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval().requires_grad_(False)
