"""`python -m studies`: run studies and write their pages."""

from __future__ import annotations

import argparse
import logging
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import ray

from studies.page import Study, write
from studies.runs import ROOT, Runs
from sweeps.spec import parse_overrides
from trainables.domain import StabmapError
from trainables.messages import redacted

#: Modules of this package with a `STUDY`: the longest last.
NAMES = (
    "trace-criterion",
    "equations",
    "one-layer-cnn",
    "stabiliser-volume",
    "step-size",
    "gan-and-crowd",
    "depth",
    "last-bit-variance",
    "regulariser",
)


def study(name: str) -> Study:
    """The study of a name."""
    found: Study = import_module(f"studies.{name.replace('-', '_')}").STUDY
    return found


@contextmanager
def one_ray(address: str = "local") -> Iterator[str]:
    """One Ray for all sweeps, which would otherwise start one each; yields where it is."""
    with tempfile.TemporaryDirectory(prefix="stabmap-", ignore_cleanup_errors=True) as folder:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address == "local":
            cores = len(os.sched_getaffinity(0))
            options |= {"num_cpus": cores, "include_dashboard": False, "_temp_dir": folder}
        ray.init(address=address, **options)
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()


def run(name: str, overrides: Sequence[str], into: Path, workers: int | None) -> None:
    """Run one study here, and print its page."""
    begin, runs = time.monotonic(), Runs(parse_overrides(overrides), workers)
    print(write(study(name), runs, into))
    for ran in runs.done:
        print(f"{ran.preset} {ran.spec.hash}: MLflow run {ran.run}")
    print(f"{name}: {time.monotonic() - begin:.0f} s, {into / name}.md\n", flush=True)


def run_beside(name: str, arguments: Sequence[str]) -> bool:
    """Run one study in a process of its own, and print its page when it ends; whether it did well.

    What it says on the way comes line by line, behind its name.
    """
    command = [sys.executable, "-m", "studies", name, *arguments]
    with tempfile.TemporaryFile("w+") as page:
        child = subprocess.Popen(command, stdout=page, stderr=subprocess.PIPE, text=True, cwd=ROOT)
        with child:
            for line in child.stderr or ():
                print(f"{name}: {line}", end="", file=sys.stderr, flush=True)
        page.seek(0)
        print(page.read(), end="", flush=True)
    return child.returncode == 0


def share(studies: int, address: str) -> int | None:
    """Workers of a sweep where so many studies run beside each other; None: a cluster knows better.

    A second worker on a core that the study beside it needs has to start first, and takes turns.
    """
    cores = len(os.sched_getaffinity(0))
    return math.ceil(cores / min(cores, studies)) if address == "local" else None


def run_all(names: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """Run studies, as many at a time as there are cores; those that failed.

    A sweep of few points, or near its end, leaves cores to the study beside it.
    """
    # The longest first, so that none is left alone at the end.
    waiting = sorted(names, key=NAMES.index, reverse=True)
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        try:
            done = list(pool.map(lambda name: run_beside(name, arguments), waiting))
        except BaseException:  # Ctrl-C: the studies that run have heard it too
            pool.shutdown(cancel_futures=True)
            raise
    return [name for name, well in zip(waiting, done, strict=True) if not well]


def main() -> None:
    """Run the named studies, or all."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("-o", action="append", default=[], metavar="PATH=VALUE", dest="overrides")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "studies")
    parser.add_argument("--address", default="local", help="of a Ray cluster; else a private Ray")
    parser.add_argument("--workers", type=int, metavar="N", help="of a sweep; else what fits")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no study {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    try:
        with one_ray(given.address) as address:
            run_given([*dict.fromkeys(given.names or NAMES)], given, address)
    except StabmapError as error:
        sys.exit(f"error: {redacted(str(error))}")
    except KeyboardInterrupt:
        sys.exit(130)  # what was finished is kept


def run_given(names: Sequence[str], given: argparse.Namespace, address: str) -> None:
    """Run one study here, or several beside each other."""
    if len(names) == 1:
        run(names[0], given.overrides, given.into, given.workers)
        return
    begin = time.monotonic()
    overrides = [part for change in given.overrides for part in ("-o", change)]
    place = ["--into", str(given.into.absolute()), "--address", address]
    workers = given.workers or share(len(names), given.address)
    place += [] if workers is None else ["--workers", str(workers)]
    failed = run_all(names, [*place, *overrides])
    print(f"{len(names)} studies: {time.monotonic() - begin:.0f} s")
    if failed:
        raise StabmapError(f"these studies failed: {', '.join(failed)}; the others are written")


if __name__ == "__main__":
    main()
