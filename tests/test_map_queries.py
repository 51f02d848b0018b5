"""Questions to a map: slices, volumes, evidence, doubt, merging, and the shape of boundaries."""

from __future__ import annotations

import doctest
import importlib
import inspect
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from synthetic import ALPHA, DECAY, LR, boundaries, map_of, margins_at

import stabmap
from analysis.compare import Comparison
from analysis.geometry import Geometry, area, dimension, geometry
from analysis.map import REGIMES, StabilityMap
from analysis.marching import level_simplices
from analysis.metric_variance import Variance
from analysis.variance import Spread, final_accuracy, spread
from analysis.volume import ends
from trainables.domain import AXIS_NAMES, InputError, Margins, Mistake, Point

Array = NDArray[np.float64]

#: Without the level at 0, so that a share is an area.
COST = {"scale": "log", "low": 1e-4, "high": 1}


@pytest.fixture(scope="module")
def plane() -> StabilityMap:
    return map_of({"lr": LR, "weight_decay": DECAY})


@pytest.fixture(scope="module")
def cube() -> StabilityMap:
    return map_of({"lr": LR, "alpha": ALPHA, "weight_decay": COST}, 96, tilted)


def tilted(point: Point) -> Margins:
    """A boundary that falls by a decade over alpha, and another half a decade above it."""
    here = 0.5 - point.alpha / 2 - 0.25 * (math.log10(point.weight_decay) + 2)
    stable = here - math.log10(point.lr)
    bounded = stable + 0.5
    return Margins(-1.0 if bounded < 0 else max(-1.0, min(stable, 1.0)), bounded)


def refusal(ask: Any, *args: Any, **kwargs: Any) -> tuple[Mistake, ...]:
    with pytest.raises(InputError) as caught:
        ask(*args, **kwargs)
    assert all(mistake.law and mistake.remedy for mistake in caught.value.mistakes)
    return caught.value.mistakes


# --------------------------------------------------------------------------- docstrings

#: What a map is asked by, made by, compared by and guarded by, and what it answers with.
PUBLIC = (
    stabmap.StabilityMap,
    stabmap.MapGuard,
    stabmap.compare,
    stabmap.example_map,
    stabmap.load_map,
    Comparison,
    Variance,
    Spread,
    spread,
    final_accuracy,
)
MODULES = sorted({owner.__module__ for owner in PUBLIC})


@pytest.mark.parametrize("name", MODULES)
def test_examples_in_docstrings(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name))
    assert found.attempted > 0
    assert found.failed == 0


#: Averages of two fields, which the class's own example shows.
SHOWN_BY_CLASS = {"mean_over_ks", "mean_over_seeds"}


def without_example(owner: Any) -> list[str]:
    """The public functions, methods and properties of something that show no example."""
    members = vars(owner) if inspect.isclass(owner) else {owner.__name__: owner}
    found = []
    for name, member in members.items():
        own = getattr(member, "func", getattr(member, "fget", member))
        asked = isinstance(member, classmethod) or callable(own)
        if (name.startswith("_") and name != "__call__") or not asked or name in SHOWN_BY_CLASS:
            continue
        if ">>> " not in (inspect.getdoc(own) or ""):
            found.append(name)
    return found


@pytest.mark.parametrize("owner", PUBLIC, ids=lambda owner: owner.__name__)
def test_every_public_function_has_an_example(owner: Any) -> None:
    assert without_example(owner) == []


def test_a_function_without_an_example_is_noticed() -> None:
    class Bare:
        def asked(self) -> None:
            """What for?"""

        @property
        def known(self) -> int:
            """How many."""
            return 0

        @classmethod
        def made(cls) -> None:
            """From what?"""

    assert without_example(Bare) == ["asked", "known", "made"]


def test_the_page_on_maps_names_what_there_is() -> None:
    text = (Path(__file__).parent.parent / "docs" / "maps.md").read_text("utf-8")
    names = set(re.findall(r"`m\.(\w+)", text))
    assert {"classify", "volume", "merge"} <= names
    for name in names:
        assert hasattr(StabilityMap, name), name


# --------------------------------------------------------------------------- slices


def test_a_slice_answers_as_the_map(plane: StabilityMap) -> None:
    lr = np.geomspace(0.01, 100, 7)
    for decay in (0.0, 1e-4, 0.03, 1.0):
        line = plane.slice(weight_decay=decay)
        for name in REGIMES:
            np.testing.assert_array_equal(
                line.classify(lr=lr)[name], plane.classify(lr=lr, weight_decay=decay)[name]
            )
        assert line.max_stable("lr") == plane.max_stable("lr", weight_decay=decay)
        assert [axis.name for axis in line.axes if axis.free] == ["lr"]
        grid = line.to_xarray(count=7)
        np.testing.assert_array_equal(
            grid.probability.sel(regime="stable"), line.classify(lr=grid.lr)["stable"]
        )
        assert float(grid.weight_decay) == decay


def test_the_boundary_of_a_slice_is_that_of_the_map(cube: StabilityMap) -> None:
    row = cube.slice(alpha=1.0, weight_decay=0.01).boundary("stable").iloc[0]
    assert math.log10(row["lr"]) == pytest.approx(0.0, abs=0.15)
    assert row["alpha"] == 1.0


def test_slices_of_slices(cube: StabilityMap) -> None:
    one = cube.slice(alpha=1.0).slice(weight_decay=0.01)
    two = cube.slice(alpha=1.0, weight_decay=0.01)
    assert one.axes == two.axes
    assert one.classify(lr=0.5) == two.classify(lr=0.5)
    assert one.nearest(3, lr=0.5).equals(two.nearest(3, lr=0.5))
    assert len(one.nearest(3, lr=0.5)) == 3


def test_a_slice_has_the_points_at_its_values() -> None:
    points = [Point(lr, 0.0, decay) for lr in (0.1, 1.0, 10.0) for decay in (0.0, 0.01)]
    found = map_of({"lr": LR, "weight_decay": DECAY}, points).slice(weight_decay=0)
    assert found.frame["lr"].tolist() == [0.1, 1.0, 10.0]
    assert sum(found.counts().values()) == 3
    assert found.audit() is None
    assert 0 <= found.quality.misclassified <= 1
    assert "weight_decay 0" in repr(found)


def test_a_slice_cannot_be_kept(plane: StabilityMap, tmp_path: Any) -> None:
    line = plane.slice(weight_decay=0)
    for ask in (line.export, line.write_parquet):
        (found,) = refusal(ask, tmp_path / "out")
        assert "export the whole map" in found.remedy
    refusal(line.to_json)
    assert not list(tmp_path.iterdir())


SLICES: list[tuple[dict[str, Any], str, str]] = [
    ({}, "fixed", "a slice fixes an axis"),
    ({"alpha": 0.0}, "alpha", "the map has this axis fixed"),
    ({"weight_decy": 0.0}, "weight_decy", "no such axis"),
    ({"weight_decay": 2.0}, "weight_decay", "looked at 0 to 1 only"),
    ({"weight_decay": math.nan}, "weight_decay", "must be finite"),
    ({"weight_decay": "much"}, "weight_decay", "must be a number"),
    ({"weight_decay": [0.1, 0.2]}, "weight_decay", "one value of an axis"),
]


@pytest.mark.parametrize(("fixed", "field", "law"), SLICES)
def test_slices_that_are_refused(
    plane: StabilityMap, fixed: dict[str, Any], field: str, law: str
) -> None:
    (found,) = refusal(plane.slice, **fixed)
    assert found.field == field
    assert law in found.law


# --------------------------------------------------------------------------- volumes


def bent(random: np.random.Generator) -> tuple[Callable[[Array], Array], float]:
    """A boundary as lr over weight decay in unit coordinates, and the width of the restrained."""
    at, slope, bend = random.uniform([0.15, -0.6, 0.0], [0.6, 0.6, 0.12])
    phase, width = random.uniform([0.0, 0.1], [6.28, 0.4])
    return (lambda v: at + slope * (v - 0.5) + bend * np.sin(5 * v + phase)), float(width)


def test_intervals_of_volumes_hold_what_they_promise() -> None:
    """Over random truths, whose volumes are integrals, the 90 % interval holds most of them.

    48 intervals, of which 38 are two standard deviations below the promise of 43.
    """
    random, hits, misses = np.random.default_rng(0), 0, []
    along = (np.arange(1000) + 0.5) / 1000
    for _ in range(24):
        edge, width = bent(random)

        def margins(point: Point, edge: Any = edge, width: float = width) -> Margins:
            u, v = (math.log10(point.lr) + 2) / 4, (math.log10(point.weight_decay) + 4) / 4
            stable = float(edge(np.array(v))) - u
            bounded = stable + width
            return Margins(-1.0 if bounded < 0 else max(-1.0, min(stable, 1.0)), bounded)

        places = random.random((24, 2)) * 4
        points = [Point(float(10 ** (x - 2)), 0.0, float(10 ** (y - 4))) for x, y in places]
        found = map_of({"lr": LR, "weight_decay": COST}, points, margins)
        calm = float(np.clip(edge(along), 0, 1).mean())
        whole = float(np.clip(edge(along) + width, 0, 1).mean())
        for regime, truth in (("stable", calm), ("divergent", 1 - whole)):
            volume = found.volume(regime)
            hits += volume.low <= truth <= volume.high
            misses.append(volume.share - truth)
    assert 38 <= hits <= 47  # an interval that holds everything promises too little
    assert abs(np.mean(misses)) < 0.02


def test_volumes_add_up(plane: StabilityMap) -> None:
    shares = {name: plane.volume(name).share for name in (*REGIMES, "bounded")}
    assert sum(shares[name] for name in REGIMES) == pytest.approx(1)
    assert shares["bounded"] == pytest.approx(shares["stable"] + shares["restrained"])
    wide, narrow = plane.volume("stable", confidence=0.99), plane.volume("stable", confidence=0.5)
    assert wide.low < narrow.low < narrow.share < narrow.high < wide.high
    assert plane.volume("stable") == plane.volume("stable")


def test_more_points_narrower_interval() -> None:
    few, many = (map_of({"lr": LR, "weight_decay": DECAY}, n).volume("stable") for n in (16, 128))
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_the_level_at_0_is_an_eighth_of_its_axis() -> None:
    """Everything is stable there, and nothing elsewhere."""

    def margins(point: Point) -> Margins:
        return Margins(1.0 if point.weight_decay == 0 else -1.0, 1.0)

    found = map_of({"lr": LR, "weight_decay": DECAY}, 128, margins).volume("stable")
    assert found.low - 0.02 <= 0.125 <= found.high + 0.02


def test_ends_of_an_interval() -> None:
    low, high = ends(np.arange(1001.0), 0.9)
    assert (low, high) == pytest.approx((50, 950))


def test_volumes_that_are_refused(plane: StabilityMap) -> None:
    found = refusal(plane.volume, "calm", confidence=90)
    assert [m.field for m in found] == ["confidence", "regime"]
    assert "bounded" in found[1].remedy


# --------------------------------------------------------------------------- evidence and doubt


def test_nearest_is_what_measuring_finds(plane: StabilityMap) -> None:
    """Decades over four, the level at 0 lying 0.15 below the range."""
    found = plane.nearest(64, lr=0.3, weight_decay=0.02)
    assert list(found.columns) == ["distance", *plane.frame.columns]
    assert found["distance"].is_monotonic_increasing
    assert sorted(found["number"]) == sorted(plane.frame["number"])
    for row in found.itertuples():
        across = math.log10(row.lr / 0.3) / 4
        here = math.log10(0.02 / 1e-4) / 4
        up = (math.log10(row.weight_decay / 1e-4) / 4 if row.weight_decay else -0.15) - here
        assert row.distance == pytest.approx(math.hypot(across, up))
    first = plane.nearest(3, lr=0.3, weight_decay=0.02)
    assert first.equals(found.iloc[:3])
    assert len(plane.nearest(1000, lr=0.3, weight_decay=0)) == 64


@pytest.mark.parametrize("n", [0, -1, 1.5, True, None])
def test_how_many_neighbours(plane: StabilityMap, n: Any) -> None:
    (found,) = refusal(plane.nearest, n, lr=1, weight_decay=0)
    assert (found.field, found.value) == ("n", n)


def test_nearest_to_one_place(plane: StabilityMap) -> None:
    (found,) = refusal(plane.nearest, 2, lr=[0.1, 0.2], weight_decay=0)
    assert found.law == "one place is asked for"
    (found,) = refusal(plane.nearest, 2, lr=0.1)
    assert found.field == "weight_decay"


def test_uncertainty(plane: StabilityMap) -> None:
    lr = np.geomspace(0.01, 100, 60)
    given = plane.classify(lr=lr, weight_decay=0.01)
    stacked = np.stack(list(given.values()), -1)
    bits = plane.uncertainty(lr=lr, weight_decay=0.01)
    expected = [-sum(p * math.log2(p) for p in row if p > 0) for row in stacked]
    np.testing.assert_allclose(bits, expected, atol=1e-12)
    wrong = plane.uncertainty(lr=lr, weight_decay=0.01, kind="wrong")
    np.testing.assert_allclose(wrong, 1 - stacked.max(1))
    assert bits.max() <= math.log2(3)
    assert abs(math.log10(lr[bits.argmax()]) - boundaries(0.01)[0]) < 0.3 or (
        abs(math.log10(lr[bits.argmax()]) - boundaries(0.01)[1]) < 0.3
    )
    assert isinstance(plane.uncertainty(lr=1.0, weight_decay=0), float)
    (found,) = refusal(plane.uncertainty, lr=1, weight_decay=0, kind="nats")
    assert "bits, wrong" in found.remedy


# --------------------------------------------------------------------------- merging


def halves(**second: Any) -> tuple[StabilityMap, StabilityMap]:
    lrs = np.geomspace(0.01, 100, 16)
    return (
        map_of({"lr": LR}, [Point(float(v)) for v in lrs[::2]]),
        map_of({"lr": LR}, [Point(float(v)) for v in lrs[1::2]], **second),
    )


def test_a_merged_map_is_that_of_all_points() -> None:
    one, two = halves()
    both = one.merge(two)
    frame = both.frame
    assert sorted(frame["lr"]) == pytest.approx(np.geomspace(0.01, 100, 16))
    assert frame["number"].is_unique and frame["number"].is_monotonic_increasing
    points = [Point(float(v)) for v in frame["lr"]]
    assert both.classify(lr=0.3) == map_of({"lr": LR}, points).classify(lr=0.3)
    assert frame["audit"].dtype == one.frame["audit"].dtype
    assert len(both.about["merged"]) == 2
    assert [s["points"] for s in both.merge(one).about["merged"]] == [8, 8, 8]


def test_equal_trainings_count_once() -> None:
    one, _ = halves()
    assert len(one.merge(one).frame) == 8
    other = replace(one, frame=one.frame.assign(replicates=3))
    assert one.merge(other).frame["replicates"].tolist() == [3] * 8
    assert other.merge(one).frame["replicates"].tolist() == [3] * 8
    reseeded = map_of({"lr": LR}, [Point(float(v)) for v in one.frame["lr"]], seed=5)
    assert len(one.merge(reseeded).frame) == 16


def test_audits_are_evidence_in_a_merged_map() -> None:
    one, two = halves()
    audited = replace(two, frame=two.frame.assign(audit=[0] * 6 + [1] * 2))
    assert audited.audit() is not None
    assert one.merge(audited).audit() is None


@pytest.mark.parametrize(
    ("changes", "fields"),
    [
        ({"steps": 60}, {"training.steps"}),
        ({"optimiser": "nesterov"}, {"training.optimiser", "training.momentum"}),
        ({"ks": [1, 5]}, {"training.ks"}),
        ({"task": "mnist-mlp"}, None),
    ],
)
def test_maps_that_do_not_merge(changes: dict[str, Any], fields: set[str] | None) -> None:
    one, two = halves(**changes)
    found = refusal(one.merge, two)
    names = {m.field for m in found}
    if fields is None:
        assert "task.name" in names
    else:
        assert names == fields
    for mistake in found:
        assert isinstance(mistake.value, list) and len(mistake.value) == 2


def test_other_ranges_do_not_merge() -> None:
    one, _ = halves()
    two = map_of({"lr": {**LR, "high": 10}}, 4)
    (found,) = refusal(one.merge, two)
    assert (found.field, found.value) == ("axes.lr.high", [100, 10])


def test_slices_do_not_merge(plane: StabilityMap) -> None:
    line = plane.slice(weight_decay=0)
    assert {m.field for m in refusal(line.merge, line)} == {"slice"}


def test_what_a_file_does_to_tuples_does_not_matter(tmp_path: Any) -> None:
    one, two = halves()
    assert isinstance(one.about["training"]["ks"], (tuple, list))
    (path,) = two.export(tmp_path, ["json"])
    assert len(one.merge(stabmap.load_map(path)).frame) == 16


# --------------------------------------------------------------------------- level sets


def grid_of(d: int, count: int) -> Array:
    along = np.linspace(0, 1, count)
    return np.stack(np.meshgrid(*[along] * d, indexing="ij"), -1)


def test_a_plane_is_met_exactly() -> None:
    """Linear values have a straight level set: its area is that of the polygon in the cube."""
    values = grid_of(3, 7) @ np.array([0.0, 0.6, 0.8]) - 0.55
    vertices, faces = level_simplices(values)
    vertices /= 6
    np.testing.assert_allclose(vertices @ [0.0, 0.6, 0.8], 0.55, atol=1e-12)
    # From (y, z) = (0, 0.6875) to (0.9167, 0), as wide as the cube.
    assert area(vertices, faces) == pytest.approx(math.hypot(0.55 / 0.6, 0.55 / 0.8))


@given(st.lists(st.sampled_from([-1.0, 1.0]), min_size=27, max_size=27))
def test_surfaces_are_closed_whatever_the_signs(signs: list[float]) -> None:
    """Inside a shell of -1 every edge belongs to an even number of triangles: no hole anywhere."""
    values = np.full((5, 5, 5), -1.0)
    values[1:4, 1:4, 1:4] = np.reshape(signs, (3, 3, 3))
    vertices, faces = level_simplices(values)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [0, 2]]]), 1)
    counts = np.unique(edges, axis=0, return_counts=True)[1]
    assert (counts == 2).all()
    assert len(vertices) == len(np.unique(faces))


@pytest.mark.parametrize("count", [24, 48])
def test_a_sphere(count: int) -> None:
    distance = np.linalg.norm(grid_of(3, count) - [0.5, 0.45, 0.55], axis=-1)
    vertices, faces = level_simplices(distance - 0.37)
    vertices /= count - 1
    error = 0.02 * (24 / count) ** 2
    assert area(vertices, faces) == pytest.approx(4 * math.pi * 0.37**2, rel=error)
    radii = np.linalg.norm(vertices - [0.5, 0.45, 0.55], axis=1)
    np.testing.assert_allclose(radii, 0.37, rtol=error)
    edges = np.unique(
        np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [0, 2]]]), 1), axis=0
    )
    assert len(vertices) - len(edges) + len(faces) == 2  # Euler


def test_no_level_set() -> None:
    for values in (np.ones((4, 4)), -np.ones((3, 3, 3))):
        vertices, pieces = level_simplices(values)
        assert vertices.shape == (0, values.ndim)
        assert pieces.shape == (0, values.ndim)


# --------------------------------------------------------------------------- shapes


def joined(vertices: Array) -> NDArray[np.int_]:
    return np.stack([np.arange(len(vertices) - 1), np.arange(1, len(vertices))], 1)


def koch(level: int) -> Array:
    """The Koch curve from 0 to 1, of dimension ln 4 / ln 3 and length (4/3)^level."""
    points = np.array([0, 1 + 0j])
    for _ in range(level):
        step = np.diff(points) / 3
        start = points[:-1]
        tip = start + step + step * np.exp(1j * math.pi / 3)
        parts = [start, start + step, tip, start + 2 * step]
        points = np.append(np.stack(parts, 1).ravel(), points[-1])
    return np.stack([points.real, points.imag], 1)


@pytest.mark.parametrize("angle", np.linspace(0, math.pi, 9))
def test_a_straight_line(angle: float) -> None:
    vertices = 0.1 + 0.8 * np.array([[0, 0], [math.cos(angle), math.sin(angle)]])
    found = geometry(vertices, joined(vertices), 1 / 256)
    assert found.length == pytest.approx(0.8)
    assert found.roughness == pytest.approx(0, abs=1e-9)
    assert found.pieces == 1
    assert found.dimension is not None
    assert found.dimension.value == pytest.approx(1, abs=0.02)
    low, high = found.dimension.interval
    assert 0.95 < low <= found.dimension.value <= high < 1.05


def test_a_circle() -> None:
    distance = np.linalg.norm(grid_of(2, 257) - 0.5, axis=-1)
    vertices, segments = level_simplices(distance - 0.4)
    found = geometry(vertices / 256, segments, 1 / 128)
    assert found.length == pytest.approx(2 * math.pi * 0.4, rel=1e-3)
    assert found.roughness == pytest.approx(0.4 / math.sqrt(2), rel=1e-3)
    assert found.dimension is not None
    assert found.dimension.value == pytest.approx(1, abs=0.02)
    assert found.dimension.resolutions[0] >= 1 / 128
    assert found.dimension.resolutions[1] == pytest.approx(0.2, rel=0.01)


@pytest.mark.parametrize("level", [6, 7])
def test_a_koch_curve(level: int) -> None:
    vertices = koch(level)
    found = geometry(vertices, joined(vertices), 3**-5.0)
    assert found.length == pytest.approx((4 / 3) ** level)
    assert found.dimension is not None
    assert found.dimension.value == pytest.approx(math.log(4) / math.log(3), abs=0.02)
    low, high = found.dimension.interval
    assert low < math.log(4) / math.log(3) < high


def test_a_smooth_curve_seen_too_closely_is_no_fractal() -> None:
    """A Koch curve of three levels, counted far below its finest part, is made of lines."""
    vertices = koch(3)
    fine = dimension(vertices, joined(vertices), 1e-3)
    assert fine is not None
    assert fine.interval[0] < 1.1


def test_pieces_have_lines_of_their_own() -> None:
    vertices = np.array([[0.0, 0.1], [1.0, 0.1], [0.0, 0.9], [1.0, 0.9]])
    found = geometry(vertices, np.array([[0, 1], [2, 3]]), 0.01)
    assert found.length == pytest.approx(2)
    assert found.pieces == 2
    assert found.roughness == pytest.approx(0, abs=1e-9)


def test_the_roughness_of_a_roof() -> None:
    """Two segments up and down: heights are uniform on [0, 1] about their mean."""
    vertices = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    assert geometry(vertices, joined(vertices), 0.01).roughness == pytest.approx(12**-0.5)


@pytest.mark.parametrize("resolution", [0.07, 0.5])
def test_too_few_sizes_for_a_dimension(resolution: float) -> None:
    vertices = np.array([[0.0, 0.0], [1.0, 0.0]])
    assert geometry(vertices, joined(vertices), resolution).dimension is None


def test_no_boundary_has_no_shape() -> None:
    nothing = geometry(np.empty((0, 2)), np.empty((0, 2), dtype=int), 0.01)
    assert nothing == Geometry(0.0, 0, 0.0, None)


# --------------------------------------------------------------------------- shapes of a map


def test_the_surface_of_a_map(cube: StabilityMap) -> None:
    """A plane in unit coordinates: u = 0.5 + 1/8 - (v + w) / 4, of which all lies in the cube."""
    mesh = cube.boundary_mesh("stable", count=20)
    lr, alpha, decay = mesh.vertices.T
    expected = 0.5 - alpha / 2 - 0.25 * (np.log10(decay) + 2)
    assert np.abs(np.log10(lr) - expected).mean() < 0.1
    assert mesh.area == pytest.approx(math.sqrt(1 + 2 / 16), rel=0.1)
    assert mesh.faces.max() == len(mesh.vertices) - 1
    ends = [(a.low, a.high) for a in cube.axes]
    for column, (low, high) in zip(mesh.vertices.T, ends, strict=True):
        assert low is not None and high is not None
        assert low * (1 - 1e-9) <= column.min() and column.max() <= high * (1 + 1e-9)
    beyond = cube.boundary_mesh("divergent", count=20)
    assert np.log10(beyond.vertices[:, 0]).mean() == pytest.approx(
        np.log10(mesh.vertices[:, 0]).mean() + 0.5, abs=0.15
    )


def test_the_surface_is_where_the_probability_is_one_half(cube: StabilityMap) -> None:
    mesh = cube.boundary_mesh("stable", count=16)
    at = dict(zip(AXIS_NAMES, mesh.vertices.T, strict=True))
    np.testing.assert_allclose(cube.classify(**at)["stable"], 0.5, atol=0.35)
    assert abs(cube.classify(**at)["stable"].mean() - 0.5) < 0.03


def test_the_line_of_a_map(plane: StabilityMap) -> None:
    """A straight one: 0.4 decades of lr a decade of weight decay."""
    found = plane.boundary_geometry("stable")
    assert found.pieces == 1
    assert found.length == pytest.approx(math.hypot(1, 0.4), rel=0.1)
    assert found.roughness < 0.03
    assert found.dimension is None or found.dimension.value == pytest.approx(1, abs=0.15)
    slice_of = map_of({"lr": LR, "alpha": ALPHA, "weight_decay": COST}, 64, tilted)
    assert slice_of.slice(alpha=1).boundary_geometry("stable").length == pytest.approx(
        math.hypot(1, 0.25), rel=0.1
    )


def test_dimensions_say_nothing_below_the_distance_of_points() -> None:
    """Few points far from the boundary: the model's smooth line is no finding."""
    few = map_of({"lr": LR, "weight_decay": COST}, 12).boundary_geometry("stable")
    assert few.dimension is None


def test_shapes_that_are_refused(plane: StabilityMap, cube: StabilityMap) -> None:
    for ask, found in ((plane.boundary_mesh, "three"), (cube.boundary_geometry, "two")):
        (mistake,) = refusal(ask, "stable")
        assert found in mistake.law
    for ask, counts in ((cube.boundary_mesh, (1, 129)), (plane.boundary_geometry, (7, 1025))):
        for count in (*counts, True, 8.0):
            (mistake,) = refusal(ask, "stable", count=count)
            assert mistake.field == "count"
    for ask in (cube.boundary_mesh, plane.boundary_geometry):
        (mistake,) = refusal(ask, "restrained")
        assert mistake.field == "kind"


def test_no_boundary_in_the_box() -> None:
    def calm(point: Point) -> Margins:
        return Margins(1.0, 1.0)

    found = map_of({"lr": LR, "weight_decay": COST}, 16, calm)
    assert found.boundary_geometry("stable").length == 0
    whole = map_of({"lr": LR, "alpha": ALPHA, "weight_decay": COST}, 16, calm)
    mesh = whole.boundary_mesh("divergent", count=4)
    assert (len(mesh.vertices), len(mesh.faces), mesh.area) == (0, 0, 0)


def test_the_example_has_the_boundaries_it_says() -> None:
    found = stabmap.example_map("lr", "alpha", "weight_decay")
    for row in found.frame.itertuples():
        stable = -1.3 + 0.4 * row.alpha - 0.4 * math.log10(max(row.weight_decay, 1e-5))
        here = math.log10(row.lr)
        expected = 0 if here <= stable else 1 if here <= stable + math.log10(16) else 2
        assert row.regime == REGIMES[expected]
    (mistake,) = refusal(stabmap.example_map, "learning_rate")
    assert mistake.field == "free"
    assert margins_at(Point(1.0)).bounded > 0
