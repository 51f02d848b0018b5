"""`python -m studies`: run studies and write their pages."""

from __future__ import annotations

import argparse
import logging
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import ray

from studies.page import Study, write
from studies.runs import ROOT, Runs
from sweeps.spec import parse_overrides

#: Modules of this package with a `STUDY`, in the order of the site.
NAMES = (
    "one-layer-cnn",
    "equations",
    "step-size",
    "depth",
    "trace-criterion",
    "stabiliser-volume",
    "gan-and-crowd",
    "regulariser",
    "last-bit-variance",
)


def study(name: str) -> Study:
    """The study of a name."""
    found: Study = import_module(f"studies.{name.replace('-', '_')}").STUDY
    return found


@contextmanager
def one_ray() -> Iterator[None]:
    """One private Ray for all sweeps, which would otherwise start one each."""
    with tempfile.TemporaryDirectory(prefix="stabmap-", ignore_cleanup_errors=True) as folder:
        ray.init(
            address="local",
            num_cpus=len(os.sched_getaffinity(0)),
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            _temp_dir=folder,
        )
        try:
            yield
        finally:
            ray.shutdown()


def main() -> None:
    """Run the named studies, or all."""
    parser = argparse.ArgumentParser(prog="python -m studies", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    parser.add_argument("-o", action="append", default=[], metavar="PATH=VALUE", dest="overrides")
    parser.add_argument("--into", type=Path, default=ROOT / "docs" / "studies")
    given = parser.parse_args()
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"no study {', '.join(sorted(unknown))}; known: {', '.join(NAMES)}")
    with one_ray():
        for name in given.names or NAMES:
            begin, runs = time.monotonic(), Runs(parse_overrides(given.overrides))
            print(write(study(name), runs, given.into))
            for ran in runs.done:
                print(f"{ran.preset} {ran.spec.hash}: MLflow run {ran.run}")
            print(f"{name}: {time.monotonic() - begin:.0f} s, {given.into / name}.md\n", flush=True)


if __name__ == "__main__":
    main()
