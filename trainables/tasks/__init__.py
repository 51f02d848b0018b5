"""Tasks: a model, its data, its loss and its metric, found by name.

A task is a frozen dataclass whose fields are its options. To add one, write a file with such a
class and name it under the entry-point group `stabmap.tasks`; nothing else changes. Or name the
file to `load_tasks`: then the task travels with the sweep.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

from torch import Tensor, nn

from trainables.losses import Loss
from trainables.options import construct, unknown_name
from trainables.tasks.from_files import load_source, registered

GROUP = "stabmap.tasks"

#: What ships here, so that a bare checkout (no wheel, no entry points) finds it too.
BUILT_IN = {
    "beltrami": "trainables.tasks.beltrami:Beltrami",
    "biggan": "trainables.tasks.biggan:BigGAN",
    "cifar-regression": "trainables.tasks.cifar_regression:CIFARRegression",
    "cifar-tanh": "trainables.tasks.tanh_network:TanhNetwork",
    "crowd-csrnet": "trainables.tasks.crowd_counting:CSRNet",
    "crowd-mcnn": "trainables.tasks.crowd_counting:MCNN",
    "deep-linear": "trainables.tasks.deep_linear:DeepLinear",
    "heat": "trainables.tasks.heat:Heat",
    "linear-one-layer-cnn": "trainables.tasks.linear_one_layer_cnn:LinearOneLayerCNN",
    "mnist-cnn": "trainables.tasks.one_channel_cnn:OneChannelCNN",
    "mnist-convex-pairs": "trainables.tasks.convex_pairs:ConvexPairs",
    "mnist-mlp": "trainables.tasks.mnist_mlp:MnistMLP",
    "mnist-regression": "trainables.tasks.mnist_regression:MnistRegression",
    "modular-addition": "trainables.tasks.modular_addition:ModularAddition",
    "one-layer-cnn": "trainables.tasks.one_layer_cnn:OneLayerCNN",
    "quadratic-attractors": "trainables.tasks.quadratic_attractors:QuadraticAttractors",
    "resnet": "trainables.tasks.resnet:ResNet",
    "scalar-example": "trainables.tasks.scalar_example:ScalarExample",
    "sngan": "trainables.tasks.sngan:SNGAN",
    "two-layer-relu": "trainables.tasks.two_layer_relu:TwoLayerReLU",
    "vgg16-bn": "trainables.tasks.vgg:VGG16",
}


@runtime_checkable
class Task(Protocol):
    """What is trained. All tensors are float64 (or class numbers); the training casts them.

    A task may also have a method `ensemble()` that returns its own program for many trajectories at
    once, a `trainables.dynamics.ensembles.backend.Backend` named `exact`. It is used where its
    results do not depend on what is stacked.

    What a listing says of it is optional too, and every task here has it (`Described`).

    Attributes:
        name: name in specs, tags and file names.
    """

    name: ClassVar[str]

    @property
    def metric_name(self) -> str:
        """What `metric` measures."""

    @property
    def stand_in(self) -> str | None:
        """What the data stand in for and what they are, or None where they are the real thing."""

    @property
    def regularised_layer(self) -> str | None:
        """Name of the submodule that the stability regulariser acts on, "" for the whole network.

        None where there is none, as for a field on a grid: the regulariser is then refused.
        """

    @property
    def loss(self) -> Loss:
        """The training loss, a mean over the batch."""

    @property
    def batch(self) -> int | None:
        """Mini-batch size, or None for the full batch."""

    def module(self, seed: int) -> nn.Module:
        """The network with initial weights that depend on the seed alone."""

    def train_data(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the training set."""

    def test_data(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets that are held out."""

    def metric(self, outputs: Tensor, targets: Tensor) -> float:
        """Figure of merit of outputs on held-out data."""


@runtime_checkable
class Described(Protocol):
    """What a listing says of a task, beside its name.

    Attributes:
        source: where its settings come from: paper and section, figure or table.
        needs: the data that its full size needs beyond what the package has; None for nothing.
    """

    source: ClassVar[str]
    needs: ClassVar[str | None]


@runtime_checkable
class Augmented(Protocol):
    """A task that changes the inputs of each mini-batch; full batches are left as they are."""

    def augment(self, inputs: Tensor, seed: int, step: int) -> Tensor:
        """The inputs of the update after `step` others, changed.

        The change depends on the seed, that of the data order, and the step alone: all k of a
        replicate see the same inputs, and so do diagnostics, in float64.
        """


@runtime_checkable
class Alternating(Protocol):
    """A task that trains parts of its network in turns, as the players of a game.

    Its trajectories are trained one after the other, and whether a batch's loss rises in an update
    says nothing of its stability.
    """

    def trained(self, step: int) -> tuple[str, ...]:
        """Beginnings of the names of the parameters that the update after `step` others trains."""


@lru_cache(maxsize=1)
def _installed() -> dict[str, Any]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def task_names() -> tuple[str, ...]:
    """Names of all tasks that `get_task` finds, sorted."""
    return tuple(sorted({*BUILT_IN, *_installed(), *registered()}))


def load_tasks(path: str | Path) -> tuple[str, ...]:
    """Make the tasks of a Python file known by their names, in this process.

    The file is executed. It is one module that imports only what is installed; its text is sent to
    the workers of a sweep, and a changed text is another sweep.

    Args:
        path: the file. Loading it again takes its changes over.

    Returns:
        The names of its tasks.

    Raises:
        InputError: the file cannot be read or imported, holds no task, or one whose name is taken.
    """
    return load_source(path, tuple(sorted({*BUILT_IN, *_installed()})))


def task_class(name: str) -> type[Any]:
    """The class behind a task's name.

    Raises:
        InputError: no task has that name.
    """
    from pkgutil import resolve_name

    if name in BUILT_IN:
        return resolve_name(BUILT_IN[name])  # type: ignore[no-any-return]
    if name in registered():
        return registered()[name]
    if name in _installed():
        return _installed()[name].load()  # type: ignore[no-any-return]
    raise unknown_name("task", "task", name, task_names(), "stabmap tasks")


def get_task(name: str, **options: Any) -> Task:
    """A task by its name.

    Args:
        name: one of `task_names()`, or `path.py:name`: that file is executed, as by `load_tasks`.
        **options: the task's own options.

    Returns:
        The task, ready for `evaluate`.

    Raises:
        InputError: unknown name, unknown option, or an option that breaks its law; or as in
            `load_tasks`.
    """
    path, colon, inner = str(name).rpartition(":")
    if colon and path.endswith(".py"):
        load_tasks(path)
        name = inner
    return construct("task", name, task_class(name), options)  # type: ignore[no-any-return]
