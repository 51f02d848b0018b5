"""The words every other module speaks: axes, points, trainings, verdicts, results, errors.

All types are frozen and check their own laws when they are built, so that later code need not.
Nothing here imports torch: the analysis side reads these types without it.
"""

from __future__ import annotations

import hashlib
import math
import re
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from trainables.messages import HIDDEN, SECRET_WORD, printable, shortened, shown
from trainables.messages import redacted as redacted  # for `analysis`, which knows only this module

if TYPE_CHECKING:
    from trainables.schedule import Schedule

AXIS_NAMES = ("lr", "alpha", "weight_decay")
DtypeName = Literal["float32", "float64", "bfloat16", "tfloat32"]
OptimiserName = Literal["sgd", "nesterov", "adam", "adamw", "rmsprop", "adadelta"]
DecayName = Literal["coupled", "decoupled"]
BackendName = Literal["auto", "exact", "wide", "batched", "vmap", "loop"]
EarlyEnd = bool | Literal["base"]

#: Smallest normal number of each dtype; numpy knows nothing of the last two.
TINY: dict[str, float] = {
    "float32": 2.0**-126,
    "float64": 2.0**-1022,
    "bfloat16": 2.0**-126,
    "tfloat32": 2.0**-126,
}

#: What comes before the name of an optimiser of PyTorch's own.
TORCH_OPTIMISER = "torch.optim."

#: Those without a built-in rule, to suggest one: this module knows nothing of torch.
TORCH_ONLY = ("ASGD", "Adafactor", "Adagrad", "Adamax", "Muon", "NAdam", "RAdam", "Rprop")

#: Adaptive optimisers with PyTorch's default decay rate of the second moment and eps.
ADAPTIVE = {"adam": (0.999, 1e-8), "rmsprop": (0.99, 1e-8), "adadelta": (0.9, 1e-6)}

#: k x gradient must stay far from the largest float32.
LARGEST_K = 2**20
MOST_KS = 64

#: More would fill the memory before the first step, or never end.
MOST_SEEDS = 10_000
MOST_STEPS = 10**9

#: Where the extra level 0 of a log or linear axis lies in unit coordinates: just below the axis,
#: because behaviour at weight_decay -> 0 goes over into behaviour at 0 without a jump.
ZERO_LEVEL = -0.15


# --------------------------------------------------------------------------- errors


@dataclass(frozen=True)
class Mistake:
    """One thing wrong with an input: which field, its value, the law it breaks, the way out."""

    field: str
    value: Any
    law: str
    remedy: str

    def __str__(self) -> str:
        """One printable line of fewer than 1,000 characters, without secrets."""
        hidden = re.fullmatch(rf"(?i)(.*[._-])?{SECRET_WORD}", self.field)
        texts = (self.field, HIDDEN if hidden else shown(self.value), self.law, self.remedy)
        parts = (
            shortened(printable(redacted(text)), length)
            for text, length in zip(texts, (100, 405, 250, 230), strict=True)
        )
        return "{} = {}: {}; {}".format(*parts)


class StabmapError(Exception):
    """Base of all errors that stabmap raises on purpose; `exit_code` is what the shell sees."""

    exit_code = 1


class InputError(StabmapError, ValueError):
    """Something the user wrote breaks a law. `mistakes` lists all of them."""

    exit_code = 2

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(mistake) for mistake in self.mistakes))

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(self), (self.mistakes,))


class UnreachableError(StabmapError):
    """Infrastructure (a GPU, an MLflow server, a Ray cluster, a folder) cannot be used."""

    exit_code = 4


class NotReproducibleError(StabmapError):
    """The same training twice gave different bits, so nothing can be said of its stability."""


# --------------------------------------------------------------------------- axes and points


@dataclass(frozen=True)
class Axis:
    """One coordinate of a sweep: a range on a log or linear scale, or one fixed value.

    Args:
        name: `lr`, `alpha` or `weight_decay`.
        scale: `log`, `linear` or `fixed`.
        low: smallest value of the range; positive on a log scale.
        high: largest value of the range.
        value: the value of a fixed axis.
        zero: whether 0 is searched too, as an extra level below `low`. Not for `lr`.

    Raises:
        InputError: if a law is broken; all broken laws are listed.
    """

    name: str
    scale: Literal["log", "linear", "fixed"] = "fixed"
    low: float | None = None
    high: float | None = None
    value: float | None = None
    zero: bool = False

    def __post_init__(self) -> None:
        mistakes = list(self._mistakes())
        if mistakes:
            raise InputError(mistakes)

    def _mistakes(self) -> Iterable[Mistake]:
        where = f"axes.{self.name}"
        if self.name not in AXIS_NAMES:
            yield unknown_axis(where, self.name, self.name)
            return
        if self.scale == "fixed":
            yield from self._fixed_mistakes(where)
            return
        if self.value is not None:
            yield Mistake(
                f"{where}.value",
                self.value,
                f"a {self.scale} axis has no single value",
                "remove it, or set scale: fixed",
            )
        missing = False
        for end in ("low", "high"):
            number = getattr(self, end)
            if not isinstance(number, Real) or not math.isfinite(number):
                missing = True
                yield Mistake(
                    f"{where}.{end}",
                    number,
                    f"a {self.scale} axis needs a finite {end}",
                    f"write {end}: <number>",
                )
        if missing:
            return
        assert self.low is not None and self.high is not None
        if self.low >= self.high:
            yield Mistake(
                where, [self.low, self.high], "low < high must hold", "swap or widen the range"
            )
        if self.scale == "log" and self.low <= 0:
            zero = "" if self.name == "lr" else " and add zero: true for an extra level at 0"
            yield Mistake(
                f"{where}.low",
                self.low,
                "low > 0 must hold on a log scale",
                f"use a positive low{zero}, or scale: linear",
            )
        elif self.low < 0 or (self.name == "lr" and self.low <= 0):
            sign = "> 0" if self.name == "lr" else ">= 0"
            yield Mistake(f"{where}.low", self.low, f"{self.name} {sign} must hold", "raise low")
        if self.zero and self.name == "lr":
            yield Mistake(
                f"{where}.zero", True, "a learning rate of 0 trains nothing", "remove zero"
            )
        if self.zero and self.low == 0:
            yield Mistake(
                f"{where}.zero", True, "0 already belongs to the range", "remove zero or raise low"
            )

    def _fixed_mistakes(self, where: str) -> Iterable[Mistake]:
        law = "lr > 0 must hold" if self.name == "lr" else f"{self.name} >= 0 must hold"
        if self.value is None:
            yield Mistake(f"{where}.value", None, "a fixed axis needs a value", "write its value")
        elif (
            not math.isfinite(self.value)
            or self.value < 0
            or (self.name == "lr" and self.value == 0)
        ):
            yield Mistake(f"{where}.value", self.value, law, "use a finite value that obeys it")
        for name in ("low", "high"):
            if getattr(self, name) is not None:
                yield Mistake(
                    f"{where}.{name}",
                    getattr(self, name),
                    "a fixed axis has no range",
                    "remove it, or set scale: log or linear",
                )
        if self.zero:
            yield Mistake(
                f"{where}.zero", True, "a fixed axis has one level", "remove it, or give a range"
            )

    @property
    def free(self) -> bool:
        """Whether the axis has more than one value."""
        return self.scale != "fixed"

    @property
    def smallest(self) -> float:
        """Smallest value that the axis can take."""
        if self.value is not None:
            return self.value
        assert self.low is not None
        return 0.0 if self.zero else self.low

    def to_unit(self, values: ArrayLike) -> NDArray[np.float64]:
        """Values to unit coordinates: [0, 1] along the scale, `ZERO_LEVEL` for the extra level.

        Values outside the range map outside [0, 1]: a map may be asked there, with little faith.
        """
        numbers = np.asarray(values, dtype=np.float64)
        if not self.free:
            return np.zeros_like(numbers)
        assert self.low is not None and self.high is not None
        if self.scale == "linear":
            unit = (numbers - self.low) / (self.high - self.low)
        else:
            safe = np.where(numbers > 0, numbers, self.low)
            unit = np.log(safe / self.low) / math.log(self.high / self.low)
            # A value below the range nears 0: it never lies further out than 0 itself.
            unit = np.maximum(unit, ZERO_LEVEL) if self.name != "lr" else unit
            unit = np.where(numbers > 0, unit, ZERO_LEVEL)
        return np.where(numbers == 0, ZERO_LEVEL, unit) if self.zero else unit

    def from_unit(self, unit: ArrayLike) -> NDArray[np.float64]:
        """Unit coordinates to values; coordinates below 0 mean the extra level where there is one.

        The ends are exact: 0 gives `low`, 1 gives `high`.
        """
        coordinates = np.asarray(unit, dtype=np.float64)
        if not self.free:
            assert self.value is not None
            return np.full_like(coordinates, self.value)
        assert self.low is not None and self.high is not None
        if self.scale == "linear":
            values = self.low + coordinates * (self.high - self.low)
        else:
            values = np.exp(
                math.log(self.low) + coordinates * (math.log(self.high) - math.log(self.low))
            )
        inside = (coordinates >= 0) & (coordinates <= 1)
        values = np.where(inside, np.clip(values, self.low, self.high), values)
        values = np.where(coordinates == 0, self.low, np.where(coordinates == 1, self.high, values))
        return np.where(coordinates < 0, 0.0, values) if self.zero else values


@dataclass(frozen=True, order=True)
class Point:
    """One place in the map: a learning rate, a regulariser strength and a weight decay.

    Args:
        lr: learning rate, finite and > 0.
        alpha: strength of the stability regulariser, finite and >= 0.
        weight_decay: finite and >= 0.

    Raises:
        InputError: if a value breaks its law.
    """

    lr: float
    alpha: float = 0.0
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        mistakes = []
        for name in AXIS_NAMES:
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, Real):
                mistakes.append(Mistake(name, value, "must be a number", "give a number"))
            elif not _is_finite(value) or value < 0 or (name == "lr" and value == 0):
                law = "finite and > 0" if name == "lr" else "finite and >= 0"
                mistakes.append(Mistake(name, value, f"must be {law}", "choose such a value"))
            else:
                object.__setattr__(self, name, float(value) + 0.0)  # no -0.0 in keys
        if mistakes:
            raise InputError(mistakes)

    @property
    def key(self) -> str:
        """Text that is equal exactly where the three numbers are equal to the bit."""
        return ",".join(f"{name}={getattr(self, name)!r}" for name in AXIS_NAMES)


def replicate_seed(seed: int, point: Point, replicate: int) -> int:
    """Seed of one replicate, in [0, 2^31): depends on what is trained, never on when or where.

    Args:
        seed: seed of the sweep.
        point: the point that is trained.
        replicate: number of the replicate, from 0.

    Returns:
        The seed of initial weights and data order. It does not depend on k: trajectories that
        differ only in k share both.
    """
    packed = struct.pack("<q3dq", seed, point.lr, point.alpha, point.weight_decay, replicate)
    return int.from_bytes(hashlib.sha256(packed).digest()[:4], "little") & 0x7FFFFFFF


def replicate_seeds(training: Training, point: Point, replicate: int) -> tuple[int, int]:
    """Seeds of the initial weights and of the data order of one replicate.

    They are one and the same where each of the initial weights has an order of its own.
    """
    if training.orders == 1:
        seed = replicate_seed(training.seed, point, replicate)
        return seed, seed
    weights, order = divmod(replicate, training.orders)
    # Replicates count from 0: numbers below it are free for what all weights have in common.
    return (
        replicate_seed(training.seed, point, weights),
        replicate_seed(training.seed, point, -1 - order),
    )


# --------------------------------------------------------------------------- training


def _is_finite(value: Any) -> bool:
    """Whether it is a finite double; an integer of 400 digits is none."""
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def metric_names(ks: Sequence[int]) -> list[str]:
    """Names of the final metric of each k in the evidence; that of the base has none added."""
    return ["metric", *(f"metric_k{k}" for k in ks[1:])]


def odd_part(k: int) -> int:
    """The odd factor of k: k and 2^n k give the same training to the bit."""
    while k % 2 == 0:
        k //= 2
    return k


@dataclass(frozen=True)
class Training:
    """How every point of a sweep is trained.

    Args:
        ks: perturbation integers. The update is computed as (lr / k) x (k g): equal in
            mathematics, one rounding apart in floating point (Sun et al. 2024, section 3). The
            first is the base trajectory. At least two must differ in their odd part, since a power
            of two changes no bit.
        seeds: number of initial weights of a point. Each has a data order of its own, unless
            `orders` says otherwise.
        seed: seed of the sweep, from which the replicates' seeds are derived.
        orders: with more than 1, all initial weights of a point are trained with each of so many
            data orders, the same for all: what either does to the final metric can then be told
            apart (`StabilityMap.variance`). Only for tasks with mini-batches.
        steps: number of updates of a full training, at least 20.
        steps_at_lr: learning rate for which `steps` is the number of updates; at another one it is
            steps x steps_at_lr / lr, so that lr x updates is the same everywhere (Sun et al. 2024,
            figure 3). None trains every point for `steps`.
        schedule: how the learning rate changes along a training: `constant`, `step-decay` or
            `cosine`, or a mapping with `name` and options (`trainables.schedule`). Unless it is
            constant, only a blow-up ends a training early.
        dtype: `float32`, `float64`, `bfloat16`, or `tfloat32`: float32 whose products a GPU rounds
            to 10 bits before it adds them up. Diagnostics are in float64 always.
        device: `cpu`, `cuda` or `cuda:N`.
        optimiser: `sgd` (heavy ball where momentum > 0), `nesterov`, `adam`, `adamw` (kept as
            adam with decoupled decay, which is the same), `rmsprop` or `adadelta`; or one of
            PyTorch's own, such as `torch.optim.NAdam`, without the sharpness criterion.
        momentum: in [0, 1); for Adam the first decay rate beta_1; AdaDelta has none. None takes
            0.9 for nesterov and adam, 0 for the others, its own default for PyTorch's.
        decay: weight decay `coupled` (added to the gradient) or `decoupled`. None takes decoupled
            for adamw, coupled for the others.
        beta2: decay rate of the second moment in [0, 1): Adam's beta_2, RMSprop's alpha,
            AdaDelta's rho. None takes PyTorch's default; stays None for sgd and nesterov.
        eps: added to the second moment's root (AdaDelta: under it), > 0. None as for beta2.
        stabiliser: what alpha is the strength of: a name, or a mapping with `name` and options
            (`trainables.dynamics.stabilisers`).
        sharpness: whether the verdict of full-batch trainings also looks at the sharpness.
        lyapunov: whether the finite-time Lyapunov exponent is measured, by one more trajectory a
            seed. It is reported and decides nothing.
        evaluate_every: number of updates after which the metric on held-out data is measured, again
            and again; the values are a curve of the replicate. None measures it at the end alone.
        backend: what trains many trajectories at once: `exact` (the task's own program), `wide`
            or `batched` (layers batched by hand), `vmap` (`torch.func`) or `loop` (one after the
            other); they round differently. `auto` takes the first of them that suits the task and
            is sound on the device.
        early: whether a training ends as soon as more steps cannot change its label
            (`docs/verdict.md`). Margins, metric and exponent are then those of a shorter training,
            and the sharpness is measured only where it decides the label, as exactly as that needs.
            With `base` the base trajectory goes on alone to its full length, for its metric.

    Raises:
        InputError: if a law is broken; all broken laws are listed.
    """

    ks: tuple[int, ...] = (1, 3)
    seeds: int = 1
    seed: int = 0
    orders: int = 1
    steps: int = 400
    steps_at_lr: float | None = None
    schedule: str | Mapping[str, Any] = "constant"
    dtype: DtypeName = "float32"
    device: str = "cpu"
    optimiser: OptimiserName | str = "sgd"
    momentum: float | None = None
    decay: DecayName | None = None
    beta2: float | None = None
    eps: float | None = None
    stabiliser: str | Mapping[str, Any] = "stability"
    sharpness: bool = True
    lyapunov: bool = True
    evaluate_every: int | None = None
    early: EarlyEnd = True
    backend: BackendName = "auto"

    def __post_init__(self) -> None:
        if not isinstance(self.ks, (tuple, list)):
            raise InputError([Mistake("ks", self.ks, "a list of integers", "use ks: [1, 3]")])
        object.__setattr__(self, "ks", tuple(self.ks))
        mistakes = [
            *self._ks_mistakes(),
            *self._number_mistakes(),
            *self._choice_mistakes(),
            *self._optimiser_mistakes(),
            *named_mistakes("stabiliser", self.stabiliser, "stability"),
            *self._schedule_mistakes(),
        ]
        if mistakes:
            raise InputError(mistakes)
        self._fill_in()

    def _fill_in(self) -> None:
        """Replace every None by what it stands for, so that equal trainings compare equal."""
        from trainables.options import plain_options

        fill = object.__setattr__
        if self.decay is None and not self.optimiser.startswith(TORCH_OPTIMISER):
            fill(self, "decay", "decoupled" if self.optimiser == "adamw" else "coupled")
        if self.optimiser == "adamw":
            fill(self, "optimiser", "adam")
        if self.momentum is None and not self.optimiser.startswith(TORCH_OPTIMISER):
            fill(self, "momentum", 0.9 if self.optimiser in ("nesterov", "adam") else 0.0)
        if self.optimiser == "nesterov" and self.momentum == 0:
            fill(self, "optimiser", "sgd")  # the same training
        if self.optimiser in ADAPTIVE:
            beta2, eps = ADAPTIVE[self.optimiser]
            fill(self, "beta2", beta2 if self.beta2 is None else self.beta2)
            fill(self, "eps", eps if self.eps is None else self.eps)
        fill(self, "schedule", plain_options(self.rates))
        if isinstance(self.stabiliser, str):
            fill(self, "stabiliser", {"name": self.stabiliser})

    def _ks_mistakes(self) -> Iterable[Mistake]:
        broken = False
        if len(self.ks) > MOST_KS:
            law = f"a list of at most {MOST_KS} integers"
            yield Mistake("ks", f"{len(self.ks)} numbers", law, "use ks: [1, 3]")
            return
        for k in self.ks:
            if not _is_integer(k) or not 1 <= k <= LARGEST_K:
                broken = True
                law = f"k is an integer >= 1, and at most {LARGEST_K}"
                yield Mistake("ks", k, law, "use odd numbers such as 1, 3, 5")
            elif odd_part(k) not in (1, k):
                broken = True
                yield Mistake(
                    "ks",
                    k,
                    "k is odd (2^n is allowed, though it changes nothing)",
                    f"use {odd_part(k)}, which gives the same training to the bit",
                )
        if broken:
            return
        if len(set(self.ks)) < len(self.ks):
            yield Mistake("ks", list(self.ks), "each k is listed once", "remove the repeated ones")
        if len({odd_part(k) for k in self.ks}) < 2:
            yield Mistake(
                "ks",
                list(self.ks),
                "at least two k must differ by more than a power of two",
                "use ks: [1, 3]",
            )

    def _number_mistakes(self) -> Iterable[Mistake]:
        if not _is_integer(self.seeds) or not 1 <= self.seeds <= MOST_SEEDS:
            law = f"number of replicates >= 1, and at most {MOST_SEEDS}"
            yield Mistake("seeds", self.seeds, law, "use seeds: 1")
        elif not _is_integer(self.orders) or not 1 <= self.orders <= MOST_SEEDS // self.seeds:
            law = f"number of data orders >= 1, and seeds x orders at most {MOST_SEEDS}"
            yield Mistake("orders", self.orders, law, "use orders: 1")
        if not _is_integer(self.seed) or not -(2**63) <= self.seed < 2**63:
            yield Mistake("seed", self.seed, "an integer of 64 bits", "use seed: 0")
        if not _is_integer(self.steps) or not 20 <= self.steps <= MOST_STEPS:
            yield Mistake(
                "steps",
                self.steps,
                f"steps >= 20 (the verdict looks at the last tenth), and at most {MOST_STEPS}",
                "use a few hundred",
            )
        every = self.evaluate_every
        if every is not None and not (_is_integer(every) and 1 <= every <= MOST_STEPS):
            law = f"a number of updates >= 1, and at most {MOST_STEPS}"
            yield Mistake("evaluate_every", every, law, "use 20, or leave it out")
        rate = self.steps_at_lr
        if rate is not None and not (_is_number(rate) and 0 < rate < math.inf):
            yield Mistake("steps_at_lr", rate, "a learning rate > 0", "use 0.1, or leave it out")
        for name, example in (("momentum", "0, or 0.9"), ("beta2", "0.999")):
            value = getattr(self, name)
            if value is not None and not (_is_number(value) and 0 <= value < 1):
                yield Mistake(name, value, f"0 <= {name} < 1", f"use {example}")
        tiny = TINY.get(self.dtype, 0.0)
        if self.eps is not None and not (_is_number(self.eps) and tiny <= self.eps < math.inf):
            law = f"eps >= {tiny:.3g}, the smallest normal number of {self.dtype}"
            yield Mistake("eps", self.eps, law, "use 1e-8")

    def _choice_mistakes(self) -> Iterable[Mistake]:
        choices = {
            "dtype": get_args(DtypeName),
            "decay": (None, *get_args(DecayName)),
            "sharpness": (False, True),
            "lyapunov": (False, True),
            "early": (False, True, "base"),
            "backend": get_args(BackendName),
        }
        yield from self._optimiser_name_mistakes()
        if self.dtype == "tfloat32" and not str(self.device).startswith("cuda"):
            law = f"only GPUs have it, and device is {self.device}"
            yield Mistake("dtype", self.dtype, law, "use device: cuda, or dtype: float32")
        for name, known in choices.items():
            if getattr(self, name) not in known:
                allowed = [str(choice) for choice in known if choice is not None]
                yield Mistake(
                    name, getattr(self, name), "unknown choice", "use one of " + ", ".join(allowed)
                )
        if not re.fullmatch(r"cpu|cuda(:[0-9]+)?", str(self.device)):
            yield Mistake("device", self.device, "unknown device", "use cpu, cuda or cuda:0")

    def _optimiser_name_mistakes(self) -> Iterable[Mistake]:
        name, known = str(self.optimiser), get_args(OptimiserName)
        if name in known or name.startswith(TORCH_OPTIMISER):
            return
        spelt = {n: n for n in known} | {n: TORCH_OPTIMISER + n for n in TORCH_ONLY}
        guess = nearest(name.rpartition(".")[2], list(spelt))
        meant = f"did you mean {spelt[guess]}? " if guess else ""
        remedy = f"{meant}use one of {', '.join(known)}, or PyTorch's own as {TORCH_OPTIMISER}NAdam"
        yield Mistake("optimiser", self.optimiser, "unknown choice", remedy)

    def _optimiser_mistakes(self) -> Iterable[Mistake]:
        """Settings that the optimiser does not have."""
        name = self.optimiser
        if name == "adamw" and self.decay == "coupled":
            yield Mistake(
                "decay", "coupled", "adamw decouples its weight decay", "use optimiser: adam"
            )
        if name == "adadelta" and self.momentum:
            yield Mistake(
                "momentum",
                self.momentum,
                "adadelta has no momentum",
                "leave it out, or use rmsprop",
            )
        foreign = str(name).startswith(TORCH_OPTIMISER)
        for field_name in ("beta2", "eps", "decay"):
            value = getattr(self, field_name)
            if value is None:
                continue
            if foreign:
                law = f"{name} keeps its own {field_name}"
                yield Mistake(field_name, value, law, "leave it out, or use adam or rmsprop")
            elif field_name != "decay" and name in ("sgd", "nesterov"):
                law = f"{name} has no second moment"
                yield Mistake(field_name, value, law, "leave it out, or use adam")

    def _schedule_mistakes(self) -> Iterable[Mistake]:
        from trainables.schedule import schedule_of

        try:
            schedule_of(self.schedule)
        except InputError as error:
            yield from error.mistakes

    @cached_property
    def rates(self) -> Schedule:
        """The schedule of the learning rate."""
        from trainables.schedule import schedule_of

        return schedule_of(self.schedule)

    def steps_of(self, lr: float) -> int:
        """Number of updates of a full training at a learning rate."""
        if self.steps_at_lr is None:
            return self.steps
        return round(min(self.steps * self.steps_at_lr / lr, 10.0 * MOST_STEPS))

    def steps_mistakes(self, field: str, lr: float) -> Iterable[Mistake]:
        """A mistake where a learning rate asks for too few or too many updates."""
        steps = self.steps_of(lr)
        if not 20 <= steps <= MOST_STEPS:
            law = f"steps x steps_at_lr / lr is {steps}, which must be from 20 to {MOST_STEPS}"
            yield Mistake(field, lr, law, "change steps or steps_at_lr, or leave steps_at_lr out")

    @property
    def stabiliser_name(self) -> str:
        """Name of what alpha is the strength of."""
        given = self.stabiliser
        return given if isinstance(given, str) else str(given["name"])

    @property
    def replicates(self) -> int:
        """Trainings of a point with other initial weights or another data order."""
        return self.seeds * self.orders

    @property
    def smallest_lr(self) -> float:
        """Smallest learning rate whose perturbed update lr / k is a normal number of the dtype."""
        return TINY[self.dtype] * max(self.ks) / self.rates.smallest(self.steps)

    @property
    def notes(self) -> tuple[str, ...]:
        """Remarks on settings that are allowed but have no effect."""
        first: dict[int, int] = {}
        notes = []
        for k in self.ks:
            other = first.setdefault(odd_part(k), k)
            if other != k:
                notes.append(f"k={k} repeats k={other} to the bit (a power of two apart)")
        return tuple(notes)


# --------------------------------------------------------------------------- verdicts


class Regime(StrEnum):
    """What a training does with a rounding error."""

    STABLE = "stable"
    RESTRAINED = "restrained"
    DIVERGENT = "divergent"

    @property
    def meaning(self) -> str:
        """One sentence for people."""
        return {
            Regime.STABLE: "rounding errors die out",
            Regime.RESTRAINED: "rounding errors are amplified but stay bounded",
            Regime.DIVERGENT: "the training blows up",
        }[self]


class Reason(StrEnum):
    """Why a regime was given."""

    SETTLED = "settled"
    AMPLIFIED = "perturbation amplified"
    OSCILLATING = "loss oscillates"
    SHARP = "sharpness above the stability threshold"
    DEAD = "dead network"
    NON_FINITE = "non-finite numbers"
    EXPLODED = "loss exploded"
    GROWING = "loss keeps growing"


@dataclass(frozen=True)
class Margins:
    """Signed distances to the two boundaries, positive on the calm side; always finite.

    Args:
        stable: margin to the stable/restrained boundary, in [-1, 1]; -1 for divergent runs.
        bounded: margin to the bounded/divergent boundary: 1 minus the growth of the loss over the
            second half of the training in factors of ten.
    """

    stable: float
    bounded: float

    def __post_init__(self) -> None:
        for name in ("stable", "bounded"):
            value = getattr(self, name)
            if not math.isfinite(value):
                raise InputError([Mistake(name, value, "a margin is finite", "report this")])

    @property
    def regime(self) -> Regime:
        """The regime that the two signs give: the only place where margins become a label."""
        if self.bounded < 0:
            return Regime.DIVERGENT
        return Regime.RESTRAINED if self.stable < 0 else Regime.STABLE


@dataclass(frozen=True)
class Verdict:
    """Regime of a training with its margins, its reason and the step that decided it."""

    margins: Margins
    reason: Reason
    step: int

    @property
    def regime(self) -> Regime:
        """The regime that the margins give."""
        return self.margins.regime


@dataclass(frozen=True)
class Curve:
    """Something observed along a training, thinned; non-finite values are left out."""

    steps: tuple[int, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Replicate:
    """One seed of a point: its verdict and the evidence for it.

    Args:
        seed: seed of its initial weights.
        verdict: what was concluded.
        steps_run: updates carried out on the base trajectory; fewer than asked where it ended
            early. The others ended with it or, where it went on alone, at the step of the verdict.
        evidence: named numbers behind the margins; None where one could not be measured.
        curves: thinned curves by name.
        backend: what trained it; see `Training`.
        order: seed of its data order; None where it is `seed`.
    """

    seed: int
    verdict: Verdict
    steps_run: int
    evidence: Mapping[str, float | None] = field(default_factory=dict)
    curves: Mapping[str, Curve] = field(default_factory=dict)
    backend: str = "loop"
    order: int | None = None


@dataclass(frozen=True)
class PointResult:
    """Everything known about one point after its trainings."""

    point: Point
    replicates: tuple[Replicate, ...]

    def __post_init__(self) -> None:
        if not self.replicates:
            raise InputError(
                [Mistake("replicates", (), "a result has at least one", "train the point")]
            )

    @classmethod
    def merged(cls, results: Sequence[PointResult]) -> Self:
        """All replicates of several trainings of one point, in their order."""
        every = (replicate for result in results for replicate in result.replicates)
        return cls(results[0].point, tuple(every))

    @property
    def verdict(self) -> Verdict:
        """The lower median of the replicates' verdicts, each margin for itself.

        With an even number of replicates the less calm of the two middle ones counts, so that
        doubt speaks against stability.
        """
        bounded = self._middle("bounded")
        stable = self._middle("stable")
        margins = Margins(stable.verdict.margins.stable, bounded.verdict.margins.bounded)
        decided = bounded if margins.regime is Regime.DIVERGENT else stable
        return Verdict(margins, decided.verdict.reason, decided.verdict.step)

    def _middle(self, margin: str) -> Replicate:
        # Ties at -1 go by the other margin, so that the reason of a divergent replicate is never
        # given for a point that is bounded.
        def rank(replicate: Replicate) -> tuple[float, float]:
            margins = replicate.verdict.margins
            return (getattr(margins, margin), margins.bounded)

        ordered = sorted(self.replicates, key=rank)
        return ordered[(len(ordered) - 1) // 2]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, texts and lists, ready for JSON."""
        point = {name: getattr(self.point, name) for name in AXIS_NAMES}
        return {"point": point, "replicates": [_plain(r) for r in self.replicates]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """Inverse of `to_dict`, exact to the bit."""
        return cls(Point(**data["point"]), tuple(map(_replicate, data["replicates"])))


def _plain(replicate: Replicate) -> dict[str, Any]:
    # Written out: `dataclasses.asdict` copies every number of every curve, ten times slower.
    return {
        "seed": replicate.seed,
        "verdict": plain_verdict(replicate.verdict),
        "steps_run": replicate.steps_run,
        "evidence": dict(replicate.evidence),
        "curves": {
            name: {"steps": list(curve.steps), "values": list(curve.values)}
            for name, curve in replicate.curves.items()
        },
        "backend": replicate.backend,
        "order": replicate.order,
    }


def plain_verdict(verdict: Verdict) -> dict[str, Any]:
    """A verdict in plain numbers and texts."""
    margins = {"stable": verdict.margins.stable, "bounded": verdict.margins.bounded}
    return {"margins": margins, "reason": verdict.reason.value, "step": verdict.step}


def verdict_of(data: Mapping[str, Any]) -> Verdict:
    """Inverse of `plain_verdict`, exact to the bit."""
    return Verdict(Margins(**data["margins"]), Reason(data["reason"]), data["step"])


def _replicate(data: Mapping[str, Any]) -> Replicate:
    return Replicate(
        seed=data["seed"],
        verdict=verdict_of(data["verdict"]),
        steps_run=data["steps_run"],
        evidence=dict(data["evidence"]),
        curves={
            name: Curve(tuple(curve["steps"]), tuple(curve["values"]))
            for name, curve in data["curves"].items()
        },
        backend=data["backend"],
        order=data.get("order"),  # results of earlier versions have none
    )


def nearest(word: str, words: Sequence[str]) -> str | None:
    """The most similar of `words`, whatever their case, or None where none is similar."""
    import difflib

    spelt = {known.lower(): known for known in reversed(words)}
    found = difflib.get_close_matches(word.lower(), list(spelt), n=1, cutoff=0.5)
    return spelt[found[0]] if found else None


def named_mistakes(field: str, given: object, example: str) -> Iterator[Mistake]:
    """A mistake where `given` is neither a name nor a mapping with a name and options."""
    named = isinstance(given, Mapping) and isinstance(given.get("name"), str)
    if not isinstance(given, str) and not (named and all(isinstance(k, str) for k in given)):  # type: ignore[attr-defined]
        law, remedy = "a name, or a mapping with name and options", f"use {field}: {example}"
        yield Mistake(field, given, law, remedy)


def unknown_axis(field: str, name: str, value: Any) -> Mistake:
    """The mistake of naming an axis that there is not."""
    guess = nearest(name, AXIS_NAMES)
    remedy = f"did you mean {guess}?" if guess else f"use one of {', '.join(AXIS_NAMES)}"
    return Mistake(field, value, "no such axis", remedy)
