"""What a reviewer finds with a sweep's run in MLflow: the map to look at, and in words."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from analysis.load import ARTIFACT_FOLDER
from analysis.map import StabilityMap
from analysis.page import write_page
from analysis.plot import plot_map, shrink
from analysis.report import Source, about_data, description, write_report
from sweeps.spec import SweepSpec
from trainables.domain import InputError

PICTURE, SMALL, PAGE, REPORT = "map.png", "map-small.png", "map.html", "report.html"
#: Characters of a description; MLflow cuts tags off at 8,000.
LONGEST = 6000


def draw(
    stability_map: StabilityMap,
    folder: Path,
    source: Source,
    picture: Path | None = None,
    last: bool = True,
) -> list[Path]:
    """Write the files that show a map; none where no axis is free, but for the report.

    Args:
        stability_map: what to show.
        folder: where to write.
        source: what is known of the sweep beside its map.
        picture: the picture, if it is there already.
        last: whether the sweep is over: the report is written only then.
    """
    files = []
    if any(axis.free for axis in stability_map.axes):
        picture = picture or plot_map(stability_map, folder / PICTURE)
        files += [picture, shrink(picture, folder / SMALL)]
        files.append(write_page(stability_map, folder / PAGE, source.tracking))
    if last:
        files.append(write_report(stability_map, folder / REPORT, source, picture))
    return files


def describe(stability_map: StabilityMap, source: Source, files: list[Path]) -> str:
    """The run's description, as Markdown, with the picture if there is one."""
    text = description(stability_map, source)
    if len(text) > LONGEST:
        text = text[:LONGEST].rpartition("\n")[0] + "\n\n(More in the report.)\n"
    first, _, rest = text.partition("\n\n")
    names = {file.name for file in files}
    shown = [first]
    if SMALL in names:  # MLflow shows pictures as large as they are
        # Relative to the address of MLflow's UI, whatever that is.
        path = quote(f"{ARTIFACT_FOLDER}/{SMALL}", safe="")
        shown.append(f"![Map of the regimes](get-artifact?path={path}&run_uuid={source.sweep})")
    if kept := [f"{ARTIFACT_FOLDER}/{name}" for name in (PAGE, REPORT) if name in names]:
        shown.append(f"Among the artifacts: {' and '.join(kept)}.")
    return "\n\n".join([*shown, rest])


def data_of(spec: SweepSpec) -> str:
    """What the task's data are, in a sentence."""
    from trainables.tasks import get_task

    try:
        return about_data(get_task(spec.task_name, **spec.task_options).stand_in)
    except InputError:
        return "Whether the data stand in for others is not known."
