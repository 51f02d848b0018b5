"""Two maps against each other: gains whose size and significance are known, and the picture."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import ALPHA, DECAY, LR, map_of, signs_of
from typer.testing import CliRunner

from analysis.compare import Comparison, compare
from analysis.map import REGIMES, StabilityMap
from analysis.plot import plot_comparison
from analysis.settings import Difference, differences
from stabmap.cli import app
from trainables.domain import InputError, Margins, Mistake, Point

COST = {"scale": "log", "low": 1e-4, "high": 1}
PLANE = {"lr": LR, "weight_decay": COST}


def straight(shift: float, width: float = 1.0) -> Callable[[Point], Margins]:
    """Stable up to 10^shift at weight decay 0.01, bounded up to `width` decades more.

    In unit coordinates the first boundary lies at 0.5 + shift / 4 on average.
    """

    def margins(point: Point) -> Margins:
        here = shift - 0.25 * (math.log10(point.weight_decay) + 2) - math.log10(point.lr)
        bounded = here + width
        return Margins(-1.0 if bounded < 0 else max(-1.0, min(here, 1.0)), bounded)

    return margins


@pytest.fixture(scope="module")
def plain() -> StabilityMap:
    return map_of(PLANE, 64, straight(-0.6))


@pytest.fixture(scope="module")
def calmer() -> StabilityMap:
    """The first boundary half a decade on, the second where it was; another optimiser."""
    return map_of(PLANE, 64, straight(-0.1, 0.5), optimiser="nesterov")


@pytest.fixture(scope="module")
def found(plain: StabilityMap, calmer: StabilityMap) -> Comparison:
    return compare(plain, calmer)


@pytest.fixture(scope="module")
def cube() -> StabilityMap:
    return cube_of(lambda margins: margins)


def cube_of(seen: Callable[[Margins], Margins]) -> StabilityMap:
    def margins(point: Point) -> Margins:
        return seen(straight(-0.6 + 0.5 * point.alpha)(point))

    return map_of({**PLANE, "alpha": ALPHA}, 96, margins)


def refusal(ask: Any, *args: Any, **kwargs: Any) -> tuple[Mistake, ...]:
    with pytest.raises(InputError) as caught:
        ask(*args, **kwargs)
    assert all(mistake.law and mistake.remedy for mistake in caught.value.mistakes)
    return caught.value.mistakes


# --------------------------------------------------------------------------- gains


def test_a_known_gain(found: Comparison) -> None:
    """Half a decade of four is an eighth of the box."""
    stable, bounded = found.gains
    assert (stable.part, bounded.part) == ("stable", "bounded")
    assert stable.first == pytest.approx(0.35, abs=0.03)
    assert stable.difference == pytest.approx(0.125, abs=0.03)
    assert stable.low < 0.125 < stable.high
    assert stable.difference == pytest.approx(stable.second - stable.first)
    assert stable.probability > 0.99
    assert stable.factor == pytest.approx(0.475 / 0.35, rel=0.1)
    assert bounded.low < 0 < bounded.high
    assert 0.02 < bounded.probability < 0.98


def test_the_way_back_is_a_loss(
    found: Comparison, plain: StabilityMap, calmer: StabilityMap
) -> None:
    back = compare(calmer, plain).gains[0]
    assert back.difference == pytest.approx(-found.gains[0].difference, abs=0.005)
    assert back.probability < 0.01
    assert back.high < 0


def test_significance_is_calibrated() -> None:
    """Between sweeps over one truth a gain is as rarely 'significant' as it promises.

    Probabilities of a gain are then about uniform. 16 comparisons: beyond 5 and 95 % lie 1.6 on
    average, and more than 5 in one of 300 cases.
    """
    random, sure = np.random.default_rng(0), []
    for _ in range(16):
        shift = random.uniform(-1, 1)
        maps = []
        for _ in range(2):
            places = random.random((16, 2)) * 4
            points = [Point(float(10 ** (x - 2)), 0.0, float(10 ** (y - 4))) for x, y in places]
            maps.append(map_of(PLANE, points, straight(shift)))
        sure.append(compare(*maps).gains[0].probability)
    outside = sum(p < 0.05 or p > 0.95 for p in sure)
    assert outside <= 5
    assert 0.25 < np.mean(sure) < 0.75
    assert np.std(sure) > 0.15  # it does say something


def test_a_map_and_itself(plain: StabilityMap) -> None:
    same = compare(plain, plain)
    for gain in same.gains:
        assert (gain.difference, gain.low, gain.high) == pytest.approx((0, 0, 0), abs=1e-3)
        assert gain.probability == pytest.approx(0.5, abs=0.1)
    assert same.differ == 0
    assert same.settings == ()
    assert "the settings are the same" in str(same)


def test_slices_of_one_map_are_drawn_together() -> None:
    """What the model does not know of both alike cancels: a close pair is told apart surely."""
    cube = cube_of(signs_of)
    one, two = cube.slice(alpha=1.0), cube.slice(alpha=1.1)
    joint = compare(one, two).gains[0]
    again = replace(cube, about={**cube.about, "note": "an equal model, but another one"})
    apart = compare(one, again.slice(alpha=1.1)).gains[0]
    assert joint.difference == pytest.approx(0.0125, abs=0.01)
    assert apart.difference == pytest.approx(joint.difference, abs=0.01)
    assert joint.high - joint.low < 0.7 * (apart.high - apart.low)
    assert joint.probability > apart.probability


def test_confidence_of_the_intervals(plain: StabilityMap, calmer: StabilityMap) -> None:
    wide, narrow = (compare(plain, calmer, confidence=c).gains[0] for c in (0.99, 0.5))
    assert wide.low < narrow.low < narrow.high < wide.high
    assert compare(plain, calmer).gains == compare(plain, calmer).gains
    assert compare(plain, calmer, seed=1).gains[0].difference == pytest.approx(
        narrow.difference, abs=0.005
    )


# --------------------------------------------------------------------------- where


def test_where_the_regimes_differ(found: Comparison) -> None:
    """Between both first boundaries, and restrained became stable there."""
    rows = found.differing
    assert (rows["first"] != rows["second"]).all()
    assert rows["differs"].is_monotonic_decreasing
    sure = rows[rows["differs"] > 0.9]
    assert len(sure) > 50
    assert set(sure["first"]) == {"restrained"} and set(sure["second"]) == {"stable"}
    edge = -0.25 * (np.log10(sure["weight_decay"]) + 2)
    beyond = np.log10(sure["lr"]) - edge
    assert beyond.between(-0.75, 0.05).all()
    assert found.differ == pytest.approx(0.125, abs=0.04)


def test_differs_is_the_probability_of_two_regimes(
    found: Comparison, plain: StabilityMap, calmer: StabilityMap
) -> None:
    rows = found.places.sample(20, random_state=0)
    for row in rows.itertuples():
        one, two = (m.classify(lr=row.lr, weight_decay=row.weight_decay) for m in (plain, calmer))
        assert row.differs == pytest.approx(1 - sum(one[n] * two[n] for n in REGIMES))
        assert row.first == max(one, key=lambda name: one[name])
        assert row.second == max(two, key=lambda name: two[name])


def test_the_table_measures_the_box(found: Comparison) -> None:
    table = found.table()
    assert list(table.index) == list(table.columns) == list(REGIMES)
    assert table.to_numpy().sum() == pytest.approx(1)
    for gain, parts in zip(found.gains, (["stable"], ["stable", "restrained"]), strict=True):
        assert table.loc[parts].to_numpy().sum() == pytest.approx(gain.first, abs=0.02)
        assert table[parts].to_numpy().sum() == pytest.approx(gain.second, abs=0.02)
    assert table.loc["restrained", "stable"] == pytest.approx(0.125, abs=0.03)


def test_the_level_at_0_weighs_as_in_the_volume() -> None:
    """An eighth of its axis, though it is one place of 65."""

    def margins(point: Point) -> Margins:
        return Margins(1.0 if point.weight_decay == 0 else -1.0, 1.0)

    one = map_of({"lr": LR, "weight_decay": DECAY}, 64, margins)
    two = map_of({"lr": LR, "weight_decay": DECAY}, 64, lambda p: Margins(1.0, 1.0))
    both = compare(one, two)
    assert both.places["share"].sum() == pytest.approx(1)
    zero = both.places["weight_decay"] == 0
    assert both.places["share"][zero].sum() == pytest.approx(1 / 8)
    first, second = (both.places["lr"] == v for v in np.unique(both.places["lr"])[:2])
    assert both.places["share"][second].sum() == pytest.approx(
        2 * both.places["share"][first].sum()
    )
    assert both.differ == pytest.approx(7 / 8, abs=0.03)


# --------------------------------------------------------------------------- settings


def test_differing_settings_are_named(found: Comparison, cube: StabilityMap) -> None:
    assert {d.field for d in found.settings} == {"training.optimiser", "training.momentum"}
    assert Difference("training.optimiser", "sgd", "nesterov") in found.settings
    assert "differs: training.optimiser: sgd and nesterov" in str(found)
    assert compare(cube.slice(alpha=0), cube.slice(alpha=2)).settings == (
        Difference("alpha", 0.0, 2.0),
    )


def test_differences_of_descriptions() -> None:
    one = {"a": 1, "b": {"c": [1, 2], "d": None}, "e": {"f": 1}}
    two = {"a": 1, "b": {"c": (1, 2), "d": 3}, "g": 5, "e": {"f": 2}}
    assert differences(one, two, ("e",)) == (Difference("b.d", None, 3), Difference("g", None, 5))
    assert differences(one, two)[1] == Difference("e.f", 1, 2)
    assert differences(one, one) == ()
    assert differences({"a": [1, 2]}, {"a": [1, 2, 3]}) == (Difference("a", [1, 2], [1, 2, 3]),)


def test_other_ranges_are_refused(plain: StabilityMap, cube: StabilityMap) -> None:
    wider = map_of({"lr": {**LR, "high": 10}, "weight_decay": DECAY}, 8)
    found = refusal(compare, plain, wider)
    assert [m.field for m in found] == ["axes.lr", "axes.weight_decay"]
    assert found[0].value == [
        {"scale": "log", "low": 0.01, "high": 100, "zero": False},
        {"scale": "log", "low": 0.01, "high": 10, "zero": False},
    ]
    (mistake,) = refusal(compare, plain, cube)
    assert mistake.field == "axes.alpha"
    assert "slice" in mistake.remedy
    point = map_of({"lr": 0.1}, [Point(0.1)])
    (mistake,) = refusal(compare, point, point)
    assert mistake.law == "a sweep of a single point has no volume"
    (mistake,) = refusal(compare, plain, plain, confidence=95)
    assert mistake.field == "confidence"


def test_fixed_values_may_differ() -> None:
    one, two = (map_of({"lr": LR, "weight_decay": v}, 12) for v in (0.0, 0.1))
    both = compare(one, two)
    assert Difference("weight_decay", 0.0, 0.1) in both.settings
    assert list(both.places.columns) == ["lr", "first", "second", "differs", "share"]


def test_as_plain_values(found: Comparison) -> None:
    content = json.loads(json.dumps(found.to_dict()))
    assert content["gains"]["stable"]["difference"] == found.gains[0].difference
    assert content["settings"]["training.optimiser"] == ["sgd", "nesterov"]
    assert content["table"]["restrained"]["stable"] == found.table().loc["restrained", "stable"]


# --------------------------------------------------------------------------- picture and verb


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_picture(found: Comparison, ending: str, tmp_path: Path) -> None:
    path = plot_comparison(found, tmp_path / f"gain.{ending}")
    content = path.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[ending])
    plot_comparison(found, path)
    assert path.read_bytes() == content
    if ending == "svg":
        text = content.decode()
        assert "optimiser = sgd" in text and "optimiser = nesterov" in text
        assert "P(gain)" in text


def test_pictures_of_three_axes_and_of_one(cube: StabilityMap, tmp_path: Path) -> None:
    assert plot_comparison(compare(cube, cube), tmp_path / "cube.png").stat().st_size > 10_000
    line = cube.slice(alpha=1, weight_decay=0.1)
    (mistake,) = refusal(plot_comparison, compare(line, line), tmp_path / "line.png")
    assert mistake.law == "the picture of a comparison needs two free axes"
    (mistake,) = refusal(plot_comparison, compare(cube, cube), tmp_path / "none" / "cube.png")
    assert "cannot be written" in mistake.law


def verb(*words: object) -> Any:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


@pytest.fixture(scope="module")
def folders(
    plain: StabilityMap, calmer: StabilityMap, cube: StabilityMap,
    tmp_path_factory: pytest.TempPathFactory,
) -> list[Path]:  # fmt: skip
    root = tmp_path_factory.mktemp("maps")
    for name, one in (("plain", plain), ("calmer", calmer), ("cube", cube)):
        one.export(root / name, ["parquet"])
    return [root / "plain", root / "calmer", root / "cube"]


def test_the_verb(folders: list[Path], found: Comparison, tmp_path: Path) -> None:
    picture = tmp_path / "gain.png"
    done = verb(*folders[:2], "-O", picture)
    assert done.exit_code == 0, done.output
    assert str(found.gains[0]) in done.stdout
    assert "differs: training.optimiser: sgd and nesterov" in done.stdout
    assert "restrained" in done.stdout
    assert str(picture) in done.stdout and picture.exists()
    asked = verb(*folders[:2], "--json")
    (line,) = asked.stdout.splitlines()
    assert json.loads(line) == json.loads(json.dumps({**found.to_dict(), "picture": None}))


def test_the_verb_slices(folders: list[Path], cube: StabilityMap) -> None:
    done = verb(folders[2], folders[2], "--at", "alpha=0", "--second-at", "alpha=2", "--json")
    assert done.exit_code == 0, done.output
    content = json.loads(done.stdout)
    expected = compare(cube.slice(alpha=0), cube.slice(alpha=2))
    assert content["gains"] == json.loads(json.dumps(expected.to_dict()["gains"]))
    assert content["settings"] == {"alpha": [0.0, 2.0]}


@pytest.mark.parametrize(
    ("words", "law"),
    [
        (["--at", "alpa=0"], "no such axis"),
        (["--at", "alpha"], "a place reads axis=number"),
        (["--second-at", "alpha=much"], "a place reads axis=number"),
        (["--at", "alpha=9"], "looked at 0 to 2 only"),
        (["--confidence", "2"], "0 < confidence < 1"),
        (["-O", "picture.doc"], "cannot be written"),
    ],
)
def test_the_verb_refuses(folders: list[Path], words: list[str], law: str) -> None:
    done = verb(folders[2], folders[2], *words)
    assert done.exit_code == 2
    assert law in done.stderr
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
