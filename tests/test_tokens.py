"""The classifier of bytes: against the wheel's own graph, runtime and public API; its tokens, its errors."""

import importlib.util
import json.decoder
import string
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from magika import Magika
from magika.types import Seekable
from networks import cases
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from helpers.tokens import ByteClassifier, every_string, load_byte_classifier, tokens

torch.set_num_threads(1)

GRAPH = Path(importlib.util.find_spec("magika").origin).parent / "models/standard_v3_3/model.onnx"
FILES = [Path(module.__file__) for module in (json, json.decoder, string, importlib.util, pytest)]
FILES += [Path(__file__), *sorted(Path(__file__).parents[1].glob("book/*.md"))[:2]]
FILES += [GRAPH, Path(__file__).parents[1] / "package.json", Path(__file__).parents[1] / "book/references.bib"]


@pytest.fixture(scope="module")
def model() -> ByteClassifier:
    return load_byte_classifier("cpu")


@pytest.fixture(scope="module")
def magika() -> Magika:
    return Magika()


def with_logits(dtype: int = TensorProto.FLOAT) -> tuple[onnx.ModelProto, str]:
    """Return the wheel's graph with its logits as an output; in double precision if asked for."""
    graph = onnx.load(GRAPH)
    (logits,) = (n.output[0] for n in graph.graph.node if n.output[0].endswith("Dense_1/AddV2:0"))
    graph.graph.output.append(helper.make_tensor_value_info(logits, dtype, ["N", 214]))
    if dtype == TensorProto.DOUBLE:
        for t in graph.graph.initializer:
            if t.data_type == TensorProto.FLOAT:
                t.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(t).astype("float64"), t.name))
        for node in graph.graph.node:
            if node.op_type == "GlobalMaxPool":  # the evaluator's own drops an axis that the graph goes on to use
                node.CopyFrom(helper.make_node("ReduceMax", node.input, node.output, axes=[2], keepdims=1))
            for a in node.attribute:
                if node.op_type == "Cast" and a.i == TensorProto.FLOAT:
                    a.i = TensorProto.DOUBLE
    return graph, logits


def test_the_weights_give_the_logits_of_the_wheels_graph_in_double_precision(model):
    graph, name = with_logits(TensorProto.DOUBLE)
    evaluator = ReferenceEvaluator(graph)
    double = load_byte_classifier("cpu").double()
    for path in FILES[:3]:
        x = tokens(path.read_bytes())
        theirs = torch.from_numpy(evaluator.run([name], {"bytes": x.int().numpy()})[0])
        assert (double(x) - theirs).abs().max() < 1e-6, path.name
        assert (model(x) - theirs).abs().max() < 1e-4, path.name


def test_the_wheels_runtime_agrees_up_to_its_rounding(model):
    # The runtime takes a variance as a difference of two squares, in single precision: hence the tolerances.
    graph, name = with_logits()
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    for path in FILES:
        x = tokens(path.read_bytes())
        p, logits = (torch.from_numpy(a) for a in session.run(["target_label", name], {"bytes": x.int().numpy()}))
        assert (model(x) - logits).abs().max() < 5e-3, path.name
        assert (model(x).softmax(1) - p).abs().max() < 2e-4, path.name
        assert model(x).argmax() == p.argmax(), path.name


def test_labels_and_the_products_answers_are_those_of_magika(model, magika):
    for path in FILES:
        content = path.read_bytes()
        theirs, logits = magika.identify_bytes(content), model(tokens(content))
        assert model.class_names[logits.argmax()] == str(theirs.dl.label), path.name
        assert model.product(logits) == [str(theirs.output.label)], path.name


CONTENT = st.builds(
    lambda before, middle, repeat, after: before + middle * repeat + after,
    st.sampled_from([b"", b" \n\t", b"\n" * 4090, b" " * 5000]),
    st.binary(min_size=8, max_size=40),
    st.sampled_from([1, 2, 30, 120, 400]),
    st.sampled_from([b"", b"\r\n ", b"\x0b" * 4090, b"\n" * 5000]),
)


@given(CONTENT)
@cases(200)
def test_tokens_are_what_magika_sees(content):
    theirs = Magika._extract_features_from_seekable(Seekable(BytesIO(content)), 1024, 0, 1024, 256, 4096, False)
    if theirs.beg[7] == 256:
        with pytest.raises(ValueError, match="at least 8 bytes"):
            tokens(content)
    else:
        assert tokens(content).tolist() == [theirs.beg + theirs.end]


def test_answers_below_the_threshold(model, magika):
    for content in [b"a comment, and no more", bytes(range(8, 256)), b"# ab\nx = 1\n", b"key: value\nlist:\n- 1\n"]:
        assert model.product(model(tokens(content))) == [str(magika.identify_bytes(content).output.label)]
    unsure = torch.zeros(1, 214)
    assert model.product(unsure) == ["unknown"]  # 3gp, a kind of film, is the first of 214 equal ones
    for name, answer in [("python", "txt"), ("randomtxt", "txt"), ("randombytes", "unknown")]:
        unsure = torch.zeros(1, 214)
        unsure[0, model.class_names.index(name)] = 1
        assert model.product(unsure) == [answer]


def test_one_hot_rows_give_the_same_and_have_a_gradient(model):
    x = tokens(Path(json.decoder.__file__).read_bytes())
    rows = F.one_hot(x, 257).float().requires_grad_()
    logits = model(rows)
    assert torch.allclose(logits, model(x), atol=1e-4)
    (grad,) = torch.autograd.grad(logits[0, 0], rows)
    assert grad.abs().sum() > 0 and not any(p.requires_grad for p in model.parameters())
    assert not model.training and len(model.class_names) == 214


@given(st.lists(st.integers(0, 256), min_size=1, max_size=4, unique=True), st.integers(1, 3))
@cases(30)
def test_every_string_is_there_once(alphabet, length):
    found = every_string(alphabet, length).tolist()
    assert len(found) == len(alphabet) ** length == len(set(map(tuple, found)))
    assert all(set(row) <= set(alphabet) and len(row) == length for row in found)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: every_string(range(32, 127), 4), ValueError, "4 tokens of 95 make 81,450,625"),
        (lambda: every_string(range(32, 127), 20), ValueError, r"make about 10\^39"),
        (
            lambda: every_string(range(10), 3, most=999),
            ValueError,
            "at most 999 strings to try; 3 tokens of 10 make 1,000",
        ),
        (lambda: every_string([], 2), ValueError, "at least one token"),
        (lambda: every_string([1, 1], 2), ValueError, "none twice"),
        (lambda: every_string([1], 0), ValueError, "length must be at least 1"),
        (lambda: tokens("text"), TypeError, "text.encode"),
        (lambda: tokens(b"  \n short "), ValueError, "at least 8 bytes"),
        (lambda: tokens(b""), ValueError, "got 0"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize(
    "x", [torch.zeros(1, 2047).long(), torch.zeros(1, 2048), torch.full((1, 2048), 257), torch.zeros(1, 2048, 256)]
)
def test_the_classifier_says_what_it_wants(model, x):
    with pytest.raises(ValueError, match="x must"):
        model(x)


@pytest.mark.parametrize("name", ["magika", "onnx"])
def test_what_is_missing_is_named_with_how_to_install_it(monkeypatch, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked, *more: None if asked == name else find(asked, *more))
    with pytest.raises(ModuleNotFoundError, match=f"{name} must be installed.*pip install --no-deps magika==1.0.3"):
        load_byte_classifier()


def test_another_version_of_the_wheel_is_told(monkeypatch, tmp_path):
    find, other = importlib.util.find_spec, SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda asked, *more: other if asked == "magika" else find(asked, *more)
    )
    with pytest.raises(RuntimeError, match="not version 1.0.3"):
        load_byte_classifier()


def test_magika_is_not_imported():
    code = "import sys; from helpers.tokens import load_byte_classifier as load; load(); "
    code += "assert not {'magika', 'onnxruntime'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
