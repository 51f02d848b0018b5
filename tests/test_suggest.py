"""Suggested points, against fitting the map's model again with either label."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import qmc
from synthetic import ALPHA, DECAY, LR, map_of, signs_at
from typer.testing import CliRunner

from analysis.expectation_propagation import LAPSE
from analysis.gaussian_process import Classifier
from analysis.map import StabilityMap
from analysis.suggest import MOST
from stabmap.cli import app
from trainables.domain import AXIS_NAMES, InputError, Point
from trainables.threads import one_thread

Array = NDArray[np.float64]

AXES: dict[str, dict[str, Any]] = {
    "line": {"lr": LR},
    "plane": {"lr": LR, "weight_decay": DECAY},
    "box": {"lr": LR, "alpha": ALPHA, "weight_decay": DECAY},
}


@pytest.fixture(scope="module", params=AXES)
def found(request: pytest.FixtureRequest) -> StabilityMap:
    return map_of(AXES[request.param], 24, signs_at)


def frames(found: StabilityMap) -> Array:
    places: Array = found.frame[list(AXIS_NAMES)].to_numpy(np.float64)
    return places


def evenly(found: StabilityMap, count: int) -> Array:
    """Places of the box by another sequence than the code's; 1/8 of them at a level 0."""
    draws = iter(qmc.Halton(6, rng=11).random(count).T)
    columns = []
    for axis in found.axes:
        unit, switch = next(draws), next(draws)
        columns.append(axis.from_unit(np.where(axis.zero & (switch < 1 / 8), -1.0, unit)))
    return np.stack(columns, axis=1)


def doubt(process: Classifier, x: Array) -> float:
    """Mean probability that the sign of a latent function is not the likelier one."""
    mean, variance = process.predict(x - 0.5)
    return float(ndtr(-np.abs(mean) / np.sqrt(variance)).mean())


def by_refitting(found: StabilityMap, place: Array, box: Array) -> float:
    """Expected drop over both labels of both boundaries, each model made anew with the label."""
    x, there, one = found.unit(frames(found)), found.unit(box), found.unit(place[None])
    drop = 0.0
    for field in (found.surface.stable, found.surface.bounded):
        at = field.process.hyperparameters
        before = Classifier(x - 0.5, field.labels, at)
        mean, variance = before.predict(one - 0.5)
        likely = LAPSE + (1 - 2 * LAPSE) * float(ndtr(mean / np.sqrt(1 + variance))[0])
        drop += doubt(before, there)
        for label, chance in ((1.0, likely), (-1.0, 1 - likely)):
            labels = np.append(field.labels, label)
            after = Classifier(np.concatenate([x, one]) - 0.5, labels, at)
            drop -= chance * doubt(after, there)
    return drop


def test_the_drop_is_that_of_refitting_with_either_label(found: StabilityMap) -> None:
    [best] = found.suggest_next()
    place = np.array([best.point.lr, best.point.alpha, best.point.weight_decay])
    box = evenly(found, 2048)
    with one_thread():
        brute = by_refitting(found, place, box)
        others = [by_refitting(found, other, box) for other in evenly(found, 12)]
    assert best.drop == pytest.approx(brute, rel=0.2)
    assert max(others) < 1.1 * brute
    assert np.median(others) < 0.7 * brute


def test_the_same_map_gives_the_same_points_best_first(found: StabilityMap) -> None:
    chosen = found.suggest_next(6)
    assert chosen == replace(found).suggest_next(6)
    assert chosen[:2] == found.suggest_next(2)
    drops = [suggestion.drop for suggestion in chosen]
    assert drops == sorted(drops, reverse=True) and drops[-1] > 0
    assert len({suggestion.point for suggestion in chosen}) == 6


def test_points_lie_in_the_box_and_have_the_values_asked_for(found: StabilityMap) -> None:
    fixed = {axis.name: axis.smallest for axis in found.axes if axis.name != "lr"}
    for suggestion in [*found.suggest_next(8), *found.suggest_next(8, **fixed)]:
        for axis in found.axes:
            value = getattr(suggestion.point, axis.name)
            assert axis.smallest <= value <= (axis.value if axis.high is None else axis.high)
    for suggestion in found.suggest_next(8, **fixed):
        for name, value in fixed.items():
            assert getattr(suggestion.point, name) == value


def test_suggested_points_teach_more_than_random_ones() -> None:
    """Eight of either kind, trained with the true labels."""
    known = map_of(AXES["plane"], 24)
    trained = [Point(*map(float, place)) for place in frames(known)]

    def after(more: list[Point]) -> float:
        return map_of(AXES["plane"], trained + more).quality.misclassified

    random = [Point(*map(float, place)) for place in evenly(known, 32)]
    suggested = after([s.point for s in known.suggest_next(8)])
    assert suggested < 0.8 * np.mean([after(random[i : i + 8]) for i in range(0, 32, 8)])
    assert suggested < known.quality.misclassified


def test_a_slice_suggests_for_itself() -> None:
    whole = map_of(AXES["box"], 24)
    [mine] = whole.slice(alpha=1.0).suggest_next()
    [all_of_it] = whole.suggest_next(alpha=1.0)
    assert mine.point.alpha == all_of_it.point.alpha == 1.0
    # A label tells its own slice more than the whole box, of which the slice is a part.
    assert mine.drop > all_of_it.drop


def test_trained_points_are_not_suggested() -> None:
    known = map_of({"lr": LR, "weight_decay": DECAY}, [Point(0.1, 0, 0.01), Point(10.0, 0, 0.01)])
    assert known.suggest_next(lr=0.1, weight_decay=0.01) == []
    assert len(known.suggest_next(3, lr=0.2, weight_decay=0.01)) == 1


@pytest.mark.parametrize(
    ("n", "fixed", "text"),
    [
        (0, {}, "n = 0: a whole number from 1 to 64"),
        (MOST + 1, {}, "train them, and ask the new map"),
        (1.5, {}, "a whole number"),
        (True, {}, "a whole number"),
        (1, {"weight_decay": 7.0}, "the sweep looked at 0 to 1 only"),
        (1, {"weight_decay": [0.1, 0.2]}, "one value is asked for; give a number"),
        (1, {"alpha": 1.0}, "the sweep held it at 0"),
        (1, {"decay": 0.0}, "no such axis"),
    ],
)
def test_bad_questions_are_named(n: Any, fixed: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError) as caught:
        map_of(AXES["plane"], 8).suggest_next(n, **fixed)
    assert text in str(caught.value)


def test_maps_without_an_axis_or_a_point() -> None:
    point = map_of({"lr": 0.1}, [Point(0.1)])
    with pytest.raises(InputError, match="has no other to train; sweep an axis"):
        point.suggest_next()
    empty = map_of(AXES["plane"], [])
    with pytest.raises(InputError, match="at least one finished point"):
        empty.suggest_next()


# --------------------------------------------------------------------------- the shell


def test_the_shell_suggests_as_the_map(tmp_path: Path) -> None:
    known = map_of(AXES["plane"], 16)
    known.export(tmp_path, ["json"])
    asked = ["query", str(tmp_path), "--suggest", "2", "weight_decay=0"]
    wanted = known.suggest_next(2, weight_decay=0)
    shown = CliRunner().invoke(app, asked)
    assert shown.exit_code == 0, shown.output
    assert shown.stdout.splitlines() == [str(suggestion) for suggestion in wanted]
    told = json.loads(CliRunner().invoke(app, [*asked, "--json"]).stdout)
    assert [entry["lr"] for entry in told["suggestions"]] == [s.point.lr for s in wanted]
    assert [entry["drop"] for entry in told["suggestions"]] == [s.drop for s in wanted]


def test_the_shell_asks_one_thing_at_a_time(tmp_path: Path) -> None:
    map_of(AXES["plane"], 8).export(tmp_path, ["json"])
    done = CliRunner().invoke(app, ["query", str(tmp_path), "--suggest", "2", "--max", "lr"])
    assert done.exit_code == 2
    assert "one question at a time" in done.stderr
