"""Importing helpers costs what torch and torchvision cost: heavy libraries wait until a function needs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = [
    "timm",
    "skimage",
    "mlxtend",
    "matplotlib",
    "ipywidgets",
    "IPython",
    "scipy",
    "sklearn",
    "pandas",
    "hypothesis",
    "onnx",
    "magika",
]
MODULES = ["helpers", "helpers.models", "helpers.data", "helpers.attacks", "helpers.risk", "helpers.training"]
MODULES += ["helpers.report", "helpers.spatial", "helpers.tokens"]

# Refuses every connection, imports one module, and tells which libraries came along with it.
CODE = """
import json, socket, sys
def refuse(*args, **kwargs):
    raise AssertionError("the network was asked")
socket.socket.connect = socket.getaddrinfo = refuse
import {module}
print(json.dumps([name for name in {heavy} if name in sys.modules]))
"""


def loaded(module: str) -> list[str]:
    """Return the heavy libraries that a fresh interpreter has loaded after importing `module`."""
    code = CODE.format(module=module, heavy=HEAVY)
    run = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(run.stdout)


def test_importing_helpers_loads_no_heavy_library_asks_no_network_and_warns_of_nothing():
    assert loaded(", ".join(MODULES)) == []


@pytest.mark.parametrize("module", ["matplotlib", "scipy"])
def test_the_check_sees_a_heavy_library(module):
    assert module in loaded(f"warnings; warnings.simplefilter('ignore'); import {module}")


def test_helpers_come_from_this_repository():
    import helpers

    assert Path(helpers.__file__).is_relative_to(Path(__file__).parents[1] / "src")
