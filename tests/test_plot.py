"""Pictures: every point drawn where it belongs, the same bytes for the same map."""

from __future__ import annotations

import math
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection, QuadMesh
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from synthetic import ALPHA, DECAY, LR, map_of

from analysis import plot as plot_module
from analysis.map import REGIMES, StabilityMap
from analysis.plot import COLOURS, _Scale, plot_map
from analysis.theory import OneLayerCNN
from trainables.domain import Axis, InputError, Margins, Point

#: The ranges of the one-layer CNN's published map, where the theory's bounds cross the picture.
CNN: dict[str, Any] = {
    "lr": {"scale": "log", "low": 0.003, "high": 0.5},
    "weight_decay": {"scale": "log", "low": 4, "high": 256},
}


def figure_of(stability_map: StabilityMap, theory: bool = True) -> Figure:
    """The figure behind a picture, caught on its way to the file."""
    caught: list[Figure] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, *_, **__: caught.append(figure))
        plot_map(stability_map, "nowhere.png", theory)
    (figure,) = caught
    return figure


def same_colour(rgba: Any, name: str) -> bool:
    return bool(np.allclose(rgba[:3], to_rgb(name), atol=1e-3))


def drawn(panel: Axes, colour: str | None = None) -> list[tuple[float, float]]:
    """Positions of the points of a panel, of one colour or of all."""
    found: list[tuple[float, float]] = []
    for collection in panel.collections:
        if isinstance(collection, PathCollection):
            face = np.asarray(collection.get_facecolor(), dtype=float)[0]
            if colour is None or same_colour(face, colour):
                offsets = np.asarray(collection.get_offsets(), dtype=float)
                found += [(float(x), float(y)) for x, y in offsets]
    return found


def legend_of(figure: Figure) -> list[str]:
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def rounded(pairs: Any) -> Counter[tuple[float, ...]]:
    return Counter(tuple(round(float(v), 9) for v in pair) for pair in pairs)


# --------------------------------------------------------------------------- points


def test_every_point_of_a_map() -> None:
    """On logarithmic paper; what was evaluated at 0 stands on a line of its own below."""
    stability_map = map_of({"lr": LR, "weight_decay": DECAY}, 48)
    (panel,) = figure_of(stability_map).axes
    frame = stability_map.frame
    for regime in REGIMES:
        rows = frame[frame["regime"] == regime]
        positive = rows[rows["weight_decay"] > 0]
        found = drawn(panel, COLOURS[regime])
        assert len(found) == len(rows) > 0
        expected = [(math.log10(r.lr), math.log10(r.weight_decay)) for r in positive.itertuples()]
        assert rounded(p for p in found if p[1] >= -4) == rounded(expected)
        zeros = [(x, y) for x, y in found if y < -4]
        assert rounded((x,) for x, _ in zeros) == rounded(
            (math.log10(lr),) for lr in rows[rows["weight_decay"] == 0]["lr"]
        )
        assert len({y for _, y in zeros}) <= 1
    assert len(drawn(panel)) == 48
    low, high = panel.get_ylim()
    assert low < -4.1
    assert high == pytest.approx(0)
    assert panel.get_xlim() == pytest.approx((-2, 2))
    (zero,) = {y for _, y in drawn(panel) if y < -4}
    assert low < zero


def test_points_in_the_corners_are_inside() -> None:
    corners = [Point(lr, 0.0, decay) for lr in (0.01, 100.0) for decay in (0.0, 1e-4, 1.0)]
    (panel,) = figure_of(map_of({"lr": LR, "weight_decay": DECAY}, corners)).axes
    (left, right), (bottom, top) = panel.get_xlim(), panel.get_ylim()
    assert len(drawn(panel)) == 6
    for x, y in drawn(panel):
        assert left <= x <= right
        assert bottom <= y <= top


@pytest.mark.parametrize("zero", [False, True])
def test_linear_axes(zero: bool) -> None:
    axes = {
        "lr": {"scale": "linear", "low": 0.5, "high": 2},
        "weight_decay": {"scale": "linear", "low": 1, "high": 3, "zero": zero},
    }
    points = [Point(0.5, 0.0, 1.0), Point(2.0, 0.0, 2.5), Point(1.25, 0.0, 3.0)]
    points += [Point(1.0, 0.0, 0.0)] * zero
    (panel,) = figure_of(map_of(axes, points), theory=False).axes
    found = drawn(panel)
    assert rounded(p for p in found if p[1] >= 1) == rounded([(0.5, 1), (2, 2.5), (1.25, 3)])
    assert [x for x, y in found if y < 1] == ([1.0] if zero else [])
    assert panel.get_xlim() == pytest.approx((0.5, 2))


def test_three_axes_draw_each_point_once_in_the_nearest_panel() -> None:
    axes = {"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}
    stability_map = map_of(axes, 60)
    figure = figure_of(stability_map)
    assert len(figure.axes) == 3
    titles = [panel.get_title() for panel in figure.axes]
    assert titles == ["weight_decay = 0", "weight_decay = 0.01", "weight_decay = 1"]
    frame = stability_map.frame
    expected: list[list[tuple[float, float]]] = [[], [], []]
    for row in frame.itertuples():
        # Places of the panels on the axis: the zero level lies just below it, then 1/2 and 1.
        place = -0.15 if row.weight_decay == 0 else (math.log10(row.weight_decay) + 4) / 4
        nearest = min(range(3), key=lambda i: abs((-0.15, 0.5, 1.0)[i] - place))
        expected[nearest].append((math.log10(row.lr), row.alpha))
    for panel, points in zip(figure.axes, expected, strict=True):
        assert rounded(drawn(panel)) == rounded(points)


@settings(max_examples=40)
@given(low=st.floats(1e-9, 1e3), ratio=st.floats(1.1, 1e9), zero=st.booleans())
def test_no_point_falls_between_the_panels(low: float, ratio: float, zero: bool) -> None:
    """Whatever rounding does to the panels' places."""
    axis = Axis("weight_decay", "log", low, low * ratio, zero=zero)
    levels: list[dict[str, float]] = [{axis.name: v} for v in plot_module._levels(axis)]
    spec = {"scale": "log", "low": low, "high": low * ratio, "zero": zero}
    points = [Point(0.1, 0.5, float(axis.from_unit(u))) for u in np.linspace(0, 1, 9)]
    stability_map = map_of({"lr": LR, "alpha": ALPHA, "weight_decay": spec}, points)
    total = 0
    lr, alpha = (_Scale(a) for a in stability_map.axes[:2])
    for held in levels:
        panel = Figure().subplots()
        plot_module._points(panel, stability_map, lr, alpha, axis, held, levels)
        total += len(drawn(panel))
    assert total == 9


@pytest.mark.parametrize("axes", [{"lr": LR, "weight_decay": 0.01}, {"lr": 0.1, "alpha": ALPHA}])
def test_one_axis_draws_points_and_probabilities(axes: dict[str, Any]) -> None:
    stability_map = map_of(axes, 20)
    (panel,) = figure_of(stability_map).axes
    name = "lr" if axes["lr"] is LR else "alpha"
    values = stability_map.frame[name].tolist()
    places = [math.log10(v) if name == "lr" else v for v in values]
    assert rounded((x,) for x, _ in drawn(panel)) == rounded((p,) for p in places)
    assert panel.get_xlabel() == name
    curves = panel.get_lines()
    assert len(curves) == 3
    for curve, regime in zip(curves, REGIMES, strict=True):
        x, y = (np.asarray(values, dtype=float) for values in curve.get_data())
        at = np.clip(10**x, 0.01, 100) if name == "lr" else x
        np.testing.assert_allclose(y, stability_map.classify(**{name: at})[regime])
        assert (x[0], x[-1]) == ((-2, 2) if name == "lr" else (0, 2))


def test_one_axis_with_a_zero_level() -> None:
    points = [Point(0.1, 0.0, decay) for decay in (0.0, 1e-4, 1.0)]
    (panel,) = figure_of(map_of({"lr": 0.1, "weight_decay": DECAY}, points)).axes
    zero, low, high = sorted(x for x, _ in drawn(panel))
    assert (low, high) == pytest.approx((-4, 0))
    assert zero < -4.1
    assert panel.get_xlim()[0] < zero
    assert "0" in [tick.get_text() for tick in panel.get_xticklabels()]


# --------------------------------------------------------------------------- regions


def test_regions_are_those_of_the_model() -> None:
    """Colour of the likeliest regime in every cell, paler where it has less than 80 %."""
    stability_map = map_of({"lr": LR, "weight_decay": DECAY}, 48)
    (panel,) = figure_of(stability_map).axes
    (mesh,) = [c for c in panel.collections if isinstance(c, QuadMesh)]
    corners = np.asarray(mesh.get_coordinates())
    shape = corners.shape[0] - 1, corners.shape[1] - 1
    colours = np.asarray(mesh.get_array())
    assert colours.shape == (*shape, 4)
    middles = (corners[1:, 1:] + corners[:-1, :-1]) / 2
    x, y = middles[..., 0].clip(-2, 2), middles[..., 1].clip(None, 0)
    decay = 10.0**y
    decay[0] = 0.0  # the lowest row is the level at 0, the second the gap above it
    decay[1] = 1.0
    probabilities = stability_map.classify(lr=10.0**x, weight_decay=decay)
    checked: Counter[tuple[str, bool]] = Counter()
    for row, column in np.ndindex(*shape):
        p = {name: values[row, column] for name, values in probabilities.items()}
        best = max(p, key=lambda name: p[name])
        close = sorted(p.values())[1] > p[best] - 1e-6 or abs(p[best] - 0.8) < 1e-6
        if row != 1 and not close and (row + column) % 5 == 0:
            assert same_colour(colours[row, column], COLOURS[best])
            assert colours[row, column, 3] == pytest.approx(0.6 if p[best] >= 0.8 else 0.3)
            checked[best, bool(p[best] >= 0.8)] += 1
    assert {name for name, _ in checked} == set(REGIMES)
    assert {sure for _, sure in checked} == {True, False}
    assert (colours[1, :, 3] == 0).all()


# --------------------------------------------------------------------------- theory


def test_theory_is_drawn_where_it_holds() -> None:
    """Each line lies on its closed form; both are named in the legend."""
    stability_map = map_of({**CNN, "lr": {"scale": "log", "low": 0.02, "high": 0.2}}, 12)
    figure = figure_of(stability_map)
    (panel,) = figure.axes
    labels = ["theory: 2 / sharpness", "theory: 2 / weight decay"]  # as the legend has them
    assert legend_of(figure)[-2:] == labels
    lines = {str(line.get_label()): line for line in panel.get_lines()}
    assert list(lines) == labels
    for label, line in lines.items():
        x, y = (np.asarray(values, dtype=float) for values in line.get_data())
        assert len(x) > 50
        for log_lr, log_decay in list(zip(x, y, strict=True))[::20]:
            exact = OneLayerCNN(10.0**log_decay)
            bound = exact.largest_stable_lr if "sharp" in label else exact.largest_bounded_lr
            assert 10.0**log_lr == pytest.approx(bound, rel=1e-9)
        assert x.min() >= math.log10(0.02)
        assert x.max() <= math.log10(0.2)


def test_theory_can_be_left_out() -> None:
    figure = figure_of(map_of(CNN, 12), theory=False)
    assert not figure.axes[0].get_lines()
    assert not [text for text in legend_of(figure) if "theory" in text]


@pytest.mark.parametrize(
    "changes",
    [{"task": "mnist-mlp"}, {"momentum": 0.5}, {"optimiser": "adam"}, {"decay": "decoupled"}],
)
def test_the_exact_bound_is_drawn_only_where_it_holds(changes: dict[str, Any]) -> None:
    found = legend_of(figure_of(map_of(CNN, 12, **changes)))
    assert "theory: 2 / sharpness" not in found
    assert ("theory: 3 / weight decay" in found) == ("momentum" in changes)


def test_no_theory_over_other_axes() -> None:
    """The bounds are curves of the learning rate over weight decay, and over nothing else."""
    figure = figure_of(map_of({"lr": CNN["lr"], "alpha": ALPHA, "weight_decay": 20}, 12))
    assert not [text for text in legend_of(figure) if "theory" in text]


# --------------------------------------------------------------------------- words


def test_what_the_picture_says() -> None:
    figure = figure_of(map_of({"lr": LR, "alpha": 0.5, "weight_decay": DECAY}, 16, ks=[1, 5]))
    assert figure.get_suptitle().replace("\n", "   ").split("   ") == [
        "one-layer-cnn",
        "sgd, 400 steps, float32",
        "k = 1, 5",
        "16 points x 1 seeds",
        "alpha = 0.5",
        "alpha: strength of stability",
    ]
    (panel,) = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("lr", "weight decay")
    for regime in REGIMES:
        assert f"{regime} (model)" in legend_of(figure)
        assert f"{regime} (evaluated)" in legend_of(figure)
    ticks = {
        tick.get_text(): float(place)
        for tick, place in zip(panel.get_yticklabels(), panel.get_yticks(), strict=True)
    }
    assert ticks["$10^{-4}$"] == -4
    assert ticks["$10^{0}$"] == 0
    assert ticks["0"] < -4.1


def test_an_axis_within_a_decade_has_ticks_too() -> None:
    axes = {"lr": {"scale": "log", "low": 0.2, "high": 0.8}, "weight_decay": DECAY}
    (panel,) = figure_of(map_of(axes, 8)).axes
    assert [tick.get_text() for tick in panel.get_xticklabels()] == ["0.2", "0.4", "0.8"]


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    ("axes", "ending"),
    [
        ({"lr": LR}, "png"),
        ({"lr": LR, "weight_decay": DECAY}, "png"),
        ({"lr": LR, "alpha": ALPHA, "weight_decay": DECAY}, "png"),
        ({"lr": LR, "weight_decay": DECAY}, "pdf"),
        ({"lr": LR, "weight_decay": DECAY}, "svg"),
    ],
)
def test_same_map_same_bytes(axes: dict[str, Any], ending: str, tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.{ending}" for i in range(2)]
    for path in paths:
        assert plot_map(map_of(axes, 12), path) == path
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    head = {"png": b"\x89PNG", "pdf": b"%PDF", "svg": b"<?xml"}[ending]
    assert first.startswith(head)
    assert len(first) > 5000
    assert b"CreationDate" not in first  # which would only differ tomorrow
    assert ending != "png" or b"Matplotlib" not in first  # whose version would differ


def test_one_point_is_enough(tmp_path: Path) -> None:
    points = [Point(0.1, 0.0, 0.0)]
    for number, axes in enumerate(({"lr": LR}, {"lr": LR, "weight_decay": DECAY})):
        plot_map(map_of(axes, points), tmp_path / f"{number}.png")
    assert len(list(tmp_path.iterdir())) == 2


def constant(margins: Margins, point: Point) -> Margins:
    return margins


def test_one_regime_everywhere(tmp_path: Path) -> None:
    for number, margins in enumerate((Margins(1, 1), Margins(-1, 1), Margins(-1, -9))):
        found = map_of({"lr": LR, "weight_decay": DECAY}, 8, partial(constant, margins))
        plot_map(found, tmp_path / f"{number}.png")
    assert len(list(tmp_path.iterdir())) == 3


def refusal(stability_map: StabilityMap, path: Path) -> str:
    with pytest.raises(InputError) as caught:
        plot_map(stability_map, path)
    (mistake,) = caught.value.mistakes
    assert mistake.law
    assert mistake.remedy
    return str(mistake)


@pytest.mark.parametrize("name", ["map.xyz", "missing/map.png", "file/map.png", "folder.png"])
def test_a_path_that_cannot_be_written(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "folder.png").mkdir()
    text = refusal(map_of({"lr": LR}, 4), tmp_path / name)
    assert text.startswith(f"path = {str(tmp_path / name)!r}: cannot be written")
    assert ".png, .svg or .pdf" in text
    assert "\n" not in text
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder.png"]


def test_a_path_without_an_ending(tmp_path: Path) -> None:
    try:
        written = plot_map(map_of({"lr": LR}, 4), tmp_path / "map")
    except InputError:
        assert not list(tmp_path.iterdir())
    else:
        assert written.exists()


def test_no_free_axis(tmp_path: Path) -> None:
    text = refusal(map_of({"lr": 0.1}, [Point(0.1)]), tmp_path / "map.png")
    assert text.startswith("axes = None: a picture needs a free axis")
    assert not list(tmp_path.iterdir())


def test_the_picture_is_rendered_without_a_screen() -> None:
    """No global state of pyplot: safe on worker threads and servers."""
    figure = figure_of(map_of({"lr": LR}, 4))
    assert isinstance(figure.canvas, FigureCanvasAgg)
    assert not pyplot.get_fignums()
