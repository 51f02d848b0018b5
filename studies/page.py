"""The page of a study: what was asked, found, claimed by the paper, and spent."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from studies.runs import PRESETS, ROOT, Ran, Runs
from trainables.tasks.from_files import source_of

#: What stands on pages that hold brackets against printed numbers.
LAW = (
    "A number agrees where the paper's, give or take half a unit of the last digit it printed, "
    "meets the range between the two trained values. What else agrees says so itself."
)

Agreement = Literal["agrees", "differs", "not testable here", "new"]

#: What stands below the number of gradients on every page.
COST = (
    "Products with the Hessian, for the sharpness, are not counted. Single trainings "
    "(`stabmap.evaluate`) narrow a boundary further, or test a reason; no sweep keeps them. What "
    "the total has beyond the table went into trainings whose states the figures show. "
    "`stabmap query`, `plot` and `report` take the hash, and the sweep's run in MLflow has it as "
    "its tag `stabmap.spec`. The command above goes on with what is there, and changes no digit."
)


@dataclass(frozen=True)
class Claim:
    """One line of the table of agreement.

    Args:
        what: the claim.
        paper: the paper's number or statement.
        here: what was measured.
        agreement: whether both say the same; `new` where the paper has no number.
        reason: why, where they differ or cannot be compared.
    """

    what: str
    paper: str
    here: str
    agreement: Agreement
    reason: str = ""


@dataclass(frozen=True)
class Picture:
    """A figure.

    Args:
        name: ending of its file's name.
        caption: what it shows, and which figure of the paper it stands beside.
        draw: writes it to a path.
    """

    name: str
    caption: str
    draw: Callable[[Path], object]


@dataclass(frozen=True)
class Table:
    """More numbers: a title, and rows of cells below a row of headings."""

    title: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Findings:
    """All that a study found."""

    claims: Sequence[Claim]
    pictures: Sequence[Picture]
    tables: Sequence[Table] = ()
    remarks: Sequence[str] = ()


@dataclass(frozen=True)
class Study:
    """One study.

    Args:
        name: what the command calls it, and the name of its page.
        title: heading of the page.
        source: papers and figures that it repeats.
        question: what is asked.
        find: runs the sweeps and says what they found.
    """

    name: str
    title: str
    source: str
    question: str
    find: Callable[[Runs], Findings]


def judge(holds: bool) -> Agreement:
    """`agrees` or `differs`."""
    return "agrees" if holds else "differs"


def decided(shown: bool, refuted: bool) -> Agreement:
    """What a test says that may also be too weak to say anything."""
    return judge(shown) if shown or refuted else "not testable here"


def figure(wide: float = 9, high: float = 3.6) -> Figure:
    """An empty figure, in inches."""
    return Figure(figsize=(wide, high), layout="constrained")


def save(drawn: Figure, path: Path) -> None:
    """Write a figure: the same figure gives the same bytes."""
    FigureCanvasAgg(drawn)
    with rc_context({"path.simplify": False}):
        drawn.savefig(path, dpi=100, metadata={"Software": None})


def write(study: Study, runs: Runs, folder: Path) -> str:
    """Run a study, write its page and its figures into a folder, and return the page."""
    found = study.find(runs)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for picture in found.pictures:
        picture.draw(folder / "images" / f"{study.name}-{picture.name}.png")
    page = "\n\n".join(_parts(study, found, runs)) + "\n"
    (folder / f"{study.name}.md").write_text(page, "utf-8")
    return page


def _parts(study: Study, found: Findings, runs: Runs) -> Iterable[str]:
    yield f"# {study.title}"
    yield f"<!-- Written by `make study NAME={study.name}`: edit studies/, not this page. -->"
    yield f"Repeats: {study.source}."
    yield f"**Question.** {study.question}"
    yield f"**Command.** `make study NAME={study.name}`. It writes this page and its figures."
    for picture in found.pictures:
        yield f"![{picture.name}](images/{study.name}-{picture.name}.png)\n\n{picture.caption}"
    yield "## Agreement"
    yield _table(
        ("claim", "paper", "here", "", "reason"),
        [(c.what, c.paper, c.here, f"**{c.agreement}**", c.reason) for c in found.claims],
    )
    for table in found.tables:
        yield f"## {table.title}"
        yield _table(table.headings, table.rows)
    if found.remarks:
        yield "## Remarks"
        yield from found.remarks
    yield "## Cost, and how to repeat it"
    gradients, count = f"{runs.gradients:,}", len(runs.done)
    yield f"{gradients} gradient evaluations in {count} sweeps, on {runs.hardware}. {COST}"
    yield _table(
        ("sweep", "hash", "points", "single trainings", "gradients"),
        [
            (
                f"`{command(r)}`",
                f"`{r.spec.hash}`",
                str(len(r.results)),
                str(len(r.single)),
                f"{r.gradients:,}",
            )
            for r in runs.done
        ],
    )


def command(ran: Ran) -> str:
    """What the shell takes to run a sweep alone."""
    source = source_of(ran.spec.task_name)
    tasks = f" --tasks {Path(source.path).relative_to(ROOT)}" if source else ""
    return f"stabmap run {PRESETS}/{ran.preset}.yaml{_options(ran.changes)}{tasks}"


def _options(changes: Mapping[str, object]) -> str:
    return "".join(f" -o {name}={_yaml(value)}" for name, value in changes.items())


def _yaml(value: object) -> str:
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(map(_yaml, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
