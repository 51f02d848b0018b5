"""No package unpickles, evaluates, or runs through a shell what somebody else may have written."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import stabmap

ROOT = Path(stabmap.__file__).parent.parent
PACKAGES = ("stabmap", "sweeps", "analysis", "trainables")
MODULES = {"pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib", "jsonpickle"}
CALLS = {"eval", "exec", "compile", "__import__"}
#: Functions that unpickle, make objects, or use a shell, by the end of their name.
ENDS = (
    ("yaml", "unsafe_load", "full_load", "load_all", "unsafe_load_all", "full_load_all"),
    ("os", "system", "popen"),
    ("pd", "read_pickle", "eval"),
    ("pandas", "read_pickle", "eval"),
    ("torch.hub", "load"),
    ("ray.cloudpickle", "load", "loads"),
)
FORBIDDEN = {f"{module}.{name}" for module, *names in ENDS for name in names}


def offences(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names if a.name.split(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{a.name}" for a in node.names]
            yield from (n for n in names if MODULES & set(n.split(".")) or n in FORBIDDEN)
        elif isinstance(node, ast.Call):
            yield from _call(node)


def _call(node: ast.Call) -> Iterator[str]:
    name = ast.unparse(node.func)
    given = {word.arg: ast.unparse(word.value) for word in node.keywords}
    if name.endswith("register_pickle_by_value"):  # says how to send a module; reads nothing
        return
    if name in CALLS | FORBIDDEN or MODULES & set(name.split(".")):
        yield name
    if name == "yaml.load" and ast.unparse(node.args[-1]) != "_Loader":
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield name
    if "allow_pickle" in given or (name.endswith(".load") and given.get("weights_only") == "False"):
        yield name
    if given.get("shell", "False") != "False":
        yield name


@pytest.mark.parametrize("package", PACKAGES)
def test_a_package(package: str) -> None:
    files = list((ROOT / package).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): list(offences(path.read_text("utf-8"))) for path in files}
    assert {path: names for path, names in found.items() if names} == {}


def test_the_loader_that_is_allowed_is_a_safe_one() -> None:
    import yaml

    from sweeps.plain_yaml import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
    assert not issubclass(_Loader, yaml.FullLoader)
    made = {str(tag).removeprefix("tag:yaml.org,2002:") for tag in _Loader.yaml_constructors}
    assert made == {
        str(t).removeprefix("tag:yaml.org,2002:") for t in yaml.SafeLoader.yaml_constructors
    }
    assert not any(tag.startswith("python") for tag in made)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from pickle import loads",
        "import dill as d",
        "import cloudpickle",
        "from ray import cloudpickle",
        "ray.cloudpickle.loads(x)",
        "eval('1')",
        "exec(x)",
        "__import__('os')",
        "import yaml\nyaml.load(x)",
        "yaml.load(x, yaml.Loader)",
        "yaml.load(x, Loader=yaml.FullLoader)",
        "yaml.unsafe_load(x)",
        "from yaml import unsafe_load",
        "torch.load(x)",
        "torch.load(x, weights_only=False)",
        "numpy.load(x, allow_pickle=True)",
        "pd.read_pickle(x)",
        "os.system(x)",
        "subprocess.run(x, shell=True)",
    ],
)
def test_what_it_finds(text: str) -> None:
    assert list(offences(text))


@pytest.mark.parametrize(
    "text",
    [
        "model.eval()",
        "re.compile(x)",
        "torch.load(x, map_location='cpu', weights_only=True)",
        "yaml.safe_load(x)",
        "json.loads(x)",
        "subprocess.run([x])",
        "from trainables.record import load",
    ],
)
def test_what_it_leaves_alone(text: str) -> None:
    assert not list(offences(text))
