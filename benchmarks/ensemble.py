"""How much faster are many trajectories together? The chosen backend against the loop.

Run: .venv/bin/python benchmarks/ensemble.py
     .venv/bin/python benchmarks/ensemble.py --tasks mnist-mlp --device cuda --report

Prints, for each task and 1, 16, 64, 256 and 1,024 trajectories, steps of trajectories a second of
the loop (one network after the other by plain autograd; for the one-layer CNN on every patch of its
image, as anyone would write it) and of the chosen backend, their ratio, and the peak memory that
the stack adds. A step is loss, gradient and SGD update with k; `--alpha` adds the stability
regulariser to both, as is done at 16 and 64 trajectories where it is not given. Each figure is the
best of several repetitions, in processor time on a CPU, on one thread, the two programs in turns; a
GPU's are wall times between synchronisations, and its share of the peak of a large matrix product
measured in the same run is printed. `--report` writes what is printed to benchmarks/reports/. Six
minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import resource
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from stabmap import Point, get_task
from trainables.cost import _step_flops
from trainables.domain import Training
from trainables.dynamics.ensembles.actions import Actions, States
from trainables.dynamics.ensembles.backend import Backend
from trainables.dynamics.ensembles.choose import choose
from trainables.dynamics.ensembles.memory import most_trajectories
from trainables.dynamics.ensembles.rule import StackedOptimiser
from trainables.dynamics.torch_optimiser import optimiser_of
from trainables.trajectory import Bench, Trajectory, deterministic

COUNTS = (1, 16, 64, 256, 1024)
#: How each task is written for the loop, where that differs.
PLAIN: dict[str, dict[str, Any]] = {"one-layer-cnn": {"distinct": False}}
#: Trajectories that the loop is timed on: its time is proportional to their number.
LOOPED = 4
#: Where the regulariser is timed too, and its strength.
REGULARISED = (16, 64)
STRENGTH = 1.0


def loop_step(bench: Bench, point: Point) -> Callable[[], None]:
    """One step of some trajectories, each by itself."""
    runs = [Trajectory(bench, point, 1 + 2 * (i % 2), i) for i in range(LOOPED)]
    rows = bench.batch(0, 0)

    def step() -> None:
        for run in runs:
            run.step(rows)

    return step


def stacks_step(bench: Bench, backend: Backend, point: Point, count: int) -> Callable[[], None]:
    """One step of `count` trajectories in as many stacks as the planner makes of them."""
    most = most_trajectories(bench, backend)
    counts = [min(most, count - i) for i in range(0, count, most)]
    steps = [stack_step(bench, backend, point, each) for each in counts]

    def step() -> None:
        for each in steps:
            each()

    return step


def stack_step(bench: Bench, backend: Backend, point: Point, count: int) -> Callable[[], None]:
    """One step of `count` trajectories in a stack."""
    networks = [bench.network(seed, bench.dtype) for seed in range(min(count, 16))]
    starts = zip(*([p.detach() for p in n.parameters()] for n in networks), strict=True)
    repeats = -(-count // len(networks))
    stack = [torch.stack(s).repeat(repeats, *[1] * s[0].ndim)[:count] for s in starts]
    ks = [1 + 2 * (i % 2) for i in range(count)]
    rules = [optimiser_of(bench.training, point.lr, point.weight_decay, k) for k in ks]
    actions = Actions(bench)
    actions.start(point, rules)
    stacked = {p.ndim: StackedOptimiser.of_rules(rules, [0] * count, p) for p in stack}
    rows, each = bench.batch(0, 0), not bench.full_batch
    inputs, targets = bench.inputs[rows], bench.targets[rows]
    if each:  # a batch of its own for each trajectory, as in a pack of points
        inputs = inputs[None].expand(count, *inputs.shape)
        targets = targets[None].expand(count, *targets.shape)

    def step() -> None:
        before = States(list(stack), [()] * len(stack), [0] * count)
        _, gradients = actions.gradients(backend, before, inputs, targets, each)
        for i, (p, g) in enumerate(zip(stack, gradients, strict=True)):
            stack[i] = stacked[p.ndim].step(p, g, (), 0)[0]
        actions.moved(before.parameters, stack)

    return step


def fastest(step: Callable[[], None], device: str, seconds: float) -> float:
    """Shortest time of a step."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    best, begin = float("inf"), time.perf_counter()
    while best == float("inf") or time.perf_counter() - begin < seconds:
        start = clock()
        step()
        if device != "cpu":
            torch.cuda.synchronize()
        best = min(best, clock() - start)
    return best


def peak(device: str) -> float:
    """Peak memory so far in MiB."""
    if device == "cpu":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return torch.cuda.max_memory_allocated() / 2**20


def product_speed(dtype: torch.dtype) -> float:
    """FLOP/s of a product of large matrices on the GPU: its measured peak."""
    one = torch.randn(8192, 8192, dtype=dtype, device="cuda")
    return 2 * 8192**3 / fastest(lambda: torch.mm(one, one) and None, "cuda", 1.0)


def compare(name: str, counts: Sequence[int], alpha: float, device: str, seconds: float) -> None:
    """Print the table of one task."""
    point = Point(1e-3, alpha, 1e-4)
    training = Training(device=device, steps=100)
    with deterministic(device):
        bench = Bench.of(get_task(name), training)
        plain = Bench.of(get_task(name, **PLAIN.get(name, {})), training)
        backend, struck = choose(bench)
        assert backend is not None, struck
        print(f"\n{name} on {device}, {training.dtype}, alpha {alpha:g}: backend {backend.name}")
        print("  trajectories     loop, 1/s    stack, 1/s    ratio    MiB more")
        looped = loop_step(plain, point)
        for count in counts:
            before = peak(device)
            stacked = stacks_step(bench, backend, point, count)
            rates = []
            for step, steps in ((looped, LOOPED), (stacked, count), (looped, LOOPED)):
                rates.append(steps / fastest(step, device, seconds))
            loop = max(rates[0], rates[2])
            more = peak(device) - before
            ratio = rates[1] / loop
            print(
                f"  {count:12d}{loop:14,.0f}{rates[1]:14,.0f}{ratio:9.2f}{more:12.0f}", flush=True
            )
        if device != "cpu":
            flops = sum(_step_flops(bench.task)) * rates[1]
            share = flops / product_speed(bench.dtype)
            print(f"  {share:.1%} of the measured peak of {torch.cuda.get_device_name()}")


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser(description="Trajectories together against one by one.")
    known = ("mnist-mlp", "mnist-regression", "one-layer-cnn")
    parser.add_argument("--tasks", nargs="+", default=known, choices=known)
    parser.add_argument("--counts", nargs="+", type=int)
    parser.add_argument("--alpha", type=float)
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seconds", type=float, default=4.0, help="a timing, at most about")
    parser.add_argument("--report", action="store_true")
    given = parser.parse_args()
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown) if given.report else contextlib.nullcontext():
        tables = ((0.0, COUNTS), (STRENGTH, REGULARISED))
        if given.alpha is not None:
            tables = ((given.alpha, COUNTS),)
        for name in given.tasks:
            for alpha, counts in tables:
                compare(name, given.counts or counts, alpha, given.device, given.seconds)
    if given.report:
        print(shown.getvalue())
        folder = Path(__file__).parent / "reports"
        folder.mkdir(exist_ok=True)
        (folder / f"ensemble-{given.device}.txt").write_text(shown.getvalue().lstrip())


if __name__ == "__main__":
    main()
