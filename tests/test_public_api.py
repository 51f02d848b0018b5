"""What users import: the promised names, nothing heavy too early, nobody else's packages."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from synthetic import LR, map_of

import stabmap
from trainables.domain import Point

HEAVY = ("torch", "ray", "mlflow", "optuna")


def python(code: str, cwd: Path, *path: Path) -> subprocess.CompletedProcess[str]:
    """Code in a process of its own, with folders put before all others on the path."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env["PYTHONPATH"] = os.pathsep.join(
        [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    return subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=120
    )


# --------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name",
    ["load_spec", "run_sweep", "load_map", "task_names", "get_task", "evaluate", "Point", "theory"],
)
def test_promised_name(name: str) -> None:
    assert name in stabmap.__all__
    assert getattr(stabmap, name) is not None
    assert name in dir(stabmap)


def test_all_names_exist() -> None:
    for name in stabmap.__all__:
        getattr(stabmap, name)
    assert list(stabmap.__all__) == sorted(stabmap.__all__)
    space: dict[str, object] = {}
    exec("from stabmap import *", space)
    assert set(stabmap.__all__) <= set(space)


def test_names_for_type_checkers_are_those_at_run_time() -> None:
    """The imports under TYPE_CHECKING and the table of places say the same."""
    tree = ast.parse(Path(stabmap.__file__).read_text("utf-8"))
    (block,) = [
        node
        for node in tree.body
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
    ]
    places = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert places == stabmap._PLACES
    assert set(places) == set(stabmap.__all__)
    for name, module in places.items():
        if name != "theory":
            assert getattr(stabmap, name) is getattr(importlib.import_module(module), name)


def test_theory_is_a_module() -> None:
    assert stabmap.theory.OneLayerCNN(20.0).largest_bounded_lr == pytest.approx(0.1)


@pytest.mark.parametrize(
    "code",
    [
        "import stabmap.theory",
        "import stabmap.theory as t; assert t is stabmap_theory()",
        "from stabmap.theory import quadratic_threshold; assert quadratic_threshold(0.1) == 20",
        "from stabmap import theory; assert theory.quadratic_threshold(0.1) == 20",
        "import stabmap; stabmap.theory; from stabmap.theory import heat_step",
    ],
)
def test_theory_can_be_imported(code: str, tmp_path: Path) -> None:
    """In any spelling, and it is the one module however it is reached."""
    same = "; import stabmap, analysis.theory; assert stabmap.theory is analysis.theory"
    helper = "def stabmap_theory():\n    import stabmap; return stabmap.theory\n"
    done = python(helper + code + same, tmp_path)
    assert done.returncode == 0, done.stderr


def test_readme_names_exist() -> None:
    """Whatever README spells `stabmap.X` or `trainables.X` can be had."""
    text = (Path(stabmap.__file__).parent.parent / "README.md").read_text("utf-8")
    for name in re.findall(r"\bstabmap\.([a-z_]\w*)", text, re.IGNORECASE):
        assert getattr(stabmap, name) is not None
    for package in re.findall(r"`(trainables\.\w+)`", text):
        importlib.import_module(package)


def test_curvature_comes_from_the_package_by_name() -> None:
    from trainables import dynamics
    from trainables.dynamics import curvature, sharpness

    assert sharpness is curvature.sharpness
    for name in ("Estimate", "directional_sharpness", "hessian_trace", "sharpness"):
        assert getattr(dynamics, name) is getattr(curvature, name)
        assert name in dir(dynamics)
        assert f"`{name}`" in str(dynamics.__doc__)
    with pytest.raises(AttributeError, match=r"'trainables.dynamics' has no attribute 'flatness'"):
        dynamics.flatness  # noqa: B018


def test_the_package_of_dynamics_alone_loads_no_torch(tmp_path: Path) -> None:
    done = python("import sys, trainables.dynamics; assert 'torch' not in sys.modules", tmp_path)
    assert done.returncode == 0, done.stderr


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="'stabmap' has no attribute 'run_swep'"):
        stabmap.run_swep  # noqa: B018
    assert not hasattr(stabmap, "domain")


def test_promised_arguments() -> None:
    """Calls that the documentation shows."""
    signature = inspect.signature(stabmap.evaluate)
    point = stabmap.Point(lr=0.05, alpha=0.0, weight_decay=0.0)
    signature.bind([point], "one-layer-cnn", ks=(1, 3), seeds=1, steps=400, dtype="float32",
                   device="cpu")  # fmt: skip
    inspect.signature(stabmap.load_spec).bind("sweep.yaml", {"budget.points": 64})
    inspect.signature(stabmap.run_sweep).bind(None, address="local")
    inspect.signature(stabmap.load_map).bind("0123abcd")
    for name in ("classify", "max_stable", "to_frame", "export"):
        assert callable(getattr(stabmap.StabilityMap, name))


def test_errors_belong_together() -> None:
    for name in ("InputError", "UnreachableError", "NotReproducibleError"):
        assert issubclass(getattr(stabmap, name), stabmap.StabmapError)
    assert issubclass(stabmap.InputError, ValueError)


# --------------------------------------------------------------------------- weight

IMPORT = """
import sys, json, stabmap
assert "__version__" not in vars(stabmap)
print(json.dumps(sorted(sys.modules)))
"""


def test_import_alone_loads_nothing_heavy(tmp_path: Path) -> None:
    done = python(IMPORT, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    loaded = set(json.loads(done.stdout))
    assert "stabmap" in loaded
    # Of the other packages only the shells, which the check of the neighbours looks for.
    assert not {*HEAVY, "numpy", "pandas", "matplotlib", "sklearn", "pydantic"} & loaded
    assert not list(tmp_path.iterdir())


READ = """
import sys, json, stabmap
found = stabmap.load_map("out").classify(lr=0.1)
json.dumps(found)
print(json.dumps(sorted(sys.modules)))
"""


def test_a_map_is_read_without_what_trains_networks(tmp_path: Path) -> None:
    map_of({"lr": LR}, [Point(0.1), Point(10.0)]).export(tmp_path / "out")
    done = python(READ, tmp_path)
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout))
    assert "analysis.map" in loaded
    assert not set(HEAVY) & loaded


# --------------------------------------------------------------------------- neighbours


@pytest.mark.parametrize("name", ["sweeps", "analysis", "trainables"])
def test_another_package_of_the_same_name(name: str, tmp_path: Path) -> None:
    """It is named with its folder and the way out, and not a line of it is executed."""
    foreign = tmp_path / "foreign" / name
    foreign.mkdir(parents=True)
    (foreign / "__init__.py").write_text("raise SystemExit('the foreign package was executed')\n")
    done = python("import stabmap", tmp_path, tmp_path / "foreign")
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ImportError: ")
    assert f"its own package {name!r}" in last
    assert str(tmp_path / "foreign") in last
    assert "uninstall the other package" in last
    assert "environment of its own" in last


def test_a_neighbour_of_another_name_is_no_obstacle(tmp_path: Path) -> None:
    for name in ("sweep", "stabmaps"):
        (tmp_path / "foreign" / name).mkdir(parents=True)
        (tmp_path / "foreign" / name / "__init__.py").touch()
    done = python("import stabmap; print(stabmap.__version__)", tmp_path, tmp_path / "foreign")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == stabmap.__version__


def test_a_folder_without_code_in_the_way(tmp_path: Path) -> None:
    """Such as a folder sweeps/ with YAML files where Python was started."""
    folder = tmp_path / "sweeps"
    folder.mkdir()
    (folder / "mine.yaml").write_text("task: mnist-mlp\n")
    done = python("import stabmap.cli; from sweeps.spec import load_spec", tmp_path)
    assert done.returncode == 0 or str(folder) in done.stderr.splitlines()[-1]
