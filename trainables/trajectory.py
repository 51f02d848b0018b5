"""One training of one point: a network, its optimiser state and, where alpha > 0, a stabiliser."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from trainables.domain import Point, Training, UnreachableError
from trainables.dynamics.optimisers import Optimiser, Slots
from trainables.dynamics.stabilisers import Action, Setting, Stabiliser, Step, stabiliser_of
from trainables.dynamics.torch_optimiser import optimiser_of
from trainables.losses import Loss
from trainables.tasks import Alternating, Augmented, Task
from trainables.threads import one_thread

#: Training samples that the loss of a mini-batch training is watched on.
PROBE_SAMPLES = 256


@contextmanager
def deterministic(device: str, tf32: bool = False) -> Iterator[None]:
    """One thread, deterministic kernels; the former settings come back afterwards.

    Args:
        device: where is computed.
        tf32: whether a GPU may round what it multiplies to TF32.

    Raises:
        UnreachableError: a GPU is asked for where there is none.
    """
    import os

    if device.startswith("cuda"):
        require_gpu(device)
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    limits = ExitStack()
    kernels: Any = torch.utils.deterministic
    threads = torch.get_num_threads()
    strictness = torch.get_deterministic_debug_mode()
    precision = torch.get_float32_matmul_precision()
    cudnn = torch.backends.cudnn
    flags = (cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32)
    filled = kernels.fill_uninitialized_memory
    try:
        limits.enter_context(one_thread())
        torch.set_num_threads(1)
        # Not `use_deterministic_algorithms`: it imports a compiler, which takes seconds.
        torch.set_deterministic_debug_mode("error")
        # Nothing reads memory before writing it; filling it anyway costs a call an operation.
        kernels.fill_uninitialized_memory = False
        torch.set_float32_matmul_precision("high" if tf32 else "highest")
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = True, False, tf32
        yield
    finally:
        limits.close()
        torch.set_num_threads(threads)
        torch.set_deterministic_debug_mode(strictness)
        kernels.fill_uninitialized_memory = filled
        torch.set_float32_matmul_precision(precision)
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = flags


def require_gpu(device: str) -> None:
    """Raise `UnreachableError` where `device` names a GPU that this machine does not have."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = int(device.partition(":")[2] or 0)
    if index >= count:
        raise UnreachableError(
            f"device = {device!r}: this machine has {count} CUDA GPUs; use device: cpu, or run "
            "on a machine with a GPU"
        )


@dataclass(frozen=True)
class Bench:
    """A task's data on the device, in the training's dtype and in float64 for diagnostics."""

    task: Task
    training: Training
    inputs: Tensor
    targets: Tensor
    inputs64: Tensor
    targets64: Tensor
    stabiliser: Stabiliser

    @classmethod
    def of(cls, task: Task, training: Training) -> Bench:
        """Load the task's training data once for many trajectories."""
        inputs64, targets64 = (tensor.to(training.device) for tensor in task.train_data())
        dtype = dtype_of(training)
        return cls(
            task,
            training,
            cast(inputs64, dtype),
            cast(targets64, dtype),
            inputs64,
            targets64,
            stabiliser_of(training),
        )

    def loss(self, alpha: float) -> Loss:
        """The loss that is trained at this strength of the stabiliser."""
        return self.stabiliser.loss(self.task.loss, alpha) if alpha > 0 else self.task.loss

    def rule(self, point: Point, k: int, step: int) -> Optimiser:
        """The update rule of a point for one k, after `step` updates."""
        training, lr = self.training, point.lr
        if not training.rates.constant:
            steps = training.steps_of(lr)
            lr *= training.rates.factor(min(step, steps - 1), steps)
        return optimiser_of(training, lr, point.weight_decay, k)

    @cached_property
    def at_outputs(self) -> bool:
        """Whether the stabiliser acts at the network's outputs."""
        # A copy, which the stabiliser may look at with hooks; a network may need its whole batch.
        module, batch = self.network(0, torch.float64), self.inputs64[: self.task.batch]
        with torch.no_grad():
            return self.stabiliser.acts_at_outputs(self.task, module, batch)

    @property
    def last_layer(self) -> str | None:
        """The layer whose inputs a stabiliser that acts at the outputs looks at."""
        return self.stabiliser.last_layer(self.task)

    @property
    def roundoff(self) -> float:
        """Unit roundoff of the training's dtype."""
        return torch.finfo(self.dtype).eps / 2

    @property
    def dtype(self) -> torch.dtype:
        """In which parameters are kept."""
        return dtype_of(self.training)

    def deterministic(self) -> AbstractContextManager[None]:
        """The settings under which everything is computed."""
        return deterministic(self.training.device, self.training.dtype == "tfloat32")

    @property
    def full_batch(self) -> bool:
        """Whether each step sees all the data."""
        return self.task.batch is None

    @property
    def steps_per_epoch(self) -> int:
        """Updates in one pass through the data; an incomplete last batch is left out."""
        return 1 if self.task.batch is None else len(self.inputs) // self.task.batch

    def batch(self, seed: int, step: int) -> Tensor | slice:
        """Rows of the batch of one step: a function of seed and step alone, the same for all k."""
        if self.task.batch is None:
            return slice(None)
        epoch, position = divmod(step, self.steps_per_epoch)
        order = _order(seed, epoch, len(self.inputs))
        size = self.task.batch
        rows = order[position * size : (position + 1) * size]
        return torch.from_numpy(rows).to(self.inputs.device)

    def data(
        self, rows: Tensor | slice, seed: int, step: int, wide: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Inputs and targets of the batch of one step, the same for all k.

        Args:
            rows: what `batch` gives for this seed and step.
            seed: of the data order.
            step: updates made before.
            wide: whether in float64, for diagnostics, rather than in the training's dtype.
        """
        data = (self.inputs64, self.targets64) if wide else (self.inputs, self.targets)
        inputs, targets = (tensor[rows] for tensor in data)
        if self._augmented is not None:
            inputs = self._augmented.augment(inputs, seed, step)
        return inputs, targets

    @cached_property
    def held_out(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets that are held out, on the device."""
        inputs, targets = self.task.test_data()
        return inputs.to(self.training.device), targets.to(self.training.device)

    @cached_property
    def keeps_state(self) -> bool:
        """Whether a forward pass changes the network's buffers, as batch normalisation does."""
        module = self.network(0, self.dtype)
        buffers = list(module.buffers())
        if not buffers:
            return False
        before = [b.clone() for b in buffers]
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            module(self.inputs[: self.task.batch])
        pairs = zip(before, module.buffers(), strict=True)
        return not all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs)

    # Asking a protocol takes microseconds, which each step of a small network would feel.
    @cached_property
    def _augmented(self) -> Augmented | None:
        fits = self.task.batch is not None and isinstance(self.task, Augmented)
        return self.task if fits else None  # type: ignore[return-value]

    @cached_property
    def _alternating(self) -> Alternating | None:
        return self.task if isinstance(self.task, Alternating) else None

    @property
    def alternates(self) -> bool:
        """Whether the task trains parts of the network in turns."""
        return self._alternating is not None

    def moving(self, module: nn.Module, step: int) -> list[bool] | None:
        """For each parameter whether the update after `step` others trains it; None: all are."""
        if self._alternating is None:
            return None
        parts = self._alternating.trained(step)
        return [name.startswith(parts) for name, _ in module.named_parameters()]

    def network(self, seed: int, dtype: torch.dtype) -> nn.Module:
        """The network with initial weights from the seed, on the device."""
        with torch.random.fork_rng(devices=[]):  # building layers must not use up global numbers
            return self.task.module(seed).to(self.training.device, dtype)


@lru_cache(maxsize=512)  # more than there are replicates together
def _order(seed: int, epoch: int, count: int) -> NDArray[np.int64]:
    """Order of the data in one epoch; kept, because every step of the epoch asks for it."""
    return np.random.RandomState([seed, epoch]).permutation(count)


def dtype_of(training: Training) -> torch.dtype:
    """In which parameters are kept."""
    name = "float32" if training.dtype == "tfloat32" else training.dtype
    found: torch.dtype = getattr(torch, name)
    return found


def cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """The tensor in a dtype; class numbers stay what they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


class Trajectory:
    """One training, a step at a time.

    Args:
        bench: the task with its data.
        point: learning rate, strength of the stabiliser, weight decay.
        k: perturbation integer.
        seed: seed of initial weights.
        order: seed of the data order and of what augments it; None for the same.
    """

    def __init__(
        self, bench: Bench, point: Point, k: int, seed: int, order: int | None = None
    ) -> None:
        self.bench, self.point, self.k, self.seed = bench, point, k, seed
        self.order = seed if order is None else order
        self.module = bench.network(seed, bench.dtype)
        self.parameters = list(self.module.parameters())
        self.optimiser = bench.rule(point, k, 0)
        self.slots: list[Slots] = [self.optimiser.init(p.detach()) for p in self.parameters]
        self.loss = bench.loss(point.alpha)
        #: Updates made, and those of each parameter since the optimiser's state was last forgotten.
        self.count = 0
        self.ages = [0] * len(self.parameters)
        self.action: Action | None = None
        if point.alpha > 0:
            setting = Setting(
                self.module,
                self.parameters,
                bench.task.regularised_layer,
                self.loss,
                self.optimiser,
                bench.steps_per_epoch,
            )
            self.action = bench.stabiliser.start(setting, point.alpha)

    def step(self, rows: Tensor | slice) -> Tensor:
        """One update on the given rows of the data.

        Returns:
            The loss of the batch before the update, without decay and penalties, detached.
        """
        inputs, targets = self.bench.data(rows, self.order, self.count)
        if not self.bench.training.rates.constant:
            self.optimiser = self.bench.rule(self.point, self.k, self.count)
            if self.action is not None:
                self.action.follow(self.optimiser)
        if self.action is not None and self.action.begin(self.count):
            self.slots = [self.optimiser.init(p.detach()) for p in self.parameters]
            self.ages = [0] * len(self.parameters)
        outputs = self.module(inputs)
        loss = self.loss.value(outputs, targets)
        moving = self.bench.moving(self.module, self.count)
        trained = moving or [True] * len(self.ages)
        age = max(a for a, moves in zip(self.ages, trained, strict=True) if moves)
        step = Step(loss, self.parameters, self.slots, age, outputs, targets, moving)
        action = self.action
        self._update(action.gradients(step) if action else step.plain_gradients(), trained)
        return loss.detach()

    @property
    def age(self) -> int:
        """Updates since the optimiser's state was last forgotten, of what had most of them."""
        return max(self.ages)

    @torch.no_grad()
    def _update(self, gradients: Sequence[Tensor], trained: Sequence[bool]) -> None:
        rule = self.optimiser
        arguments = list(zip(self.parameters, gradients, self.slots, self.ages, strict=True))
        if rule.splits:
            moves = [rule.direction(p, g, slots, age) for p, g, slots, age in arguments]
            directions = [direction for direction, _ in moves]
            if self.action is not None:
                directions = self.action.directions(directions)
            after = [rule.apply(p, d) for p, d in zip(self.parameters, directions, strict=True)]
        else:
            moves = [rule.step(p, g, slots, age) for p, g, slots, age in arguments]
            after = [new for new, _ in moves]
        after = [new if m else p for p, new, m in zip(self.parameters, after, trained, strict=True)]
        if self.action is not None:
            self.action.moved(self.parameters, after)
        for parameter, new in zip(self.parameters, after, strict=True):
            parameter.copy_(new)
        pairs = zip(moves, self.slots, trained, strict=True)
        self.slots = [new if m else old for (_, new), old, m in pairs]
        self.count += 1
        self.ages = [age + m for age, m in zip(self.ages, trained, strict=True)]

    def snapshot(self) -> list[Tensor]:
        """Copies of the parameters."""
        return [p.detach().clone() for p in self.parameters]

    @property
    def buffers(self) -> list[Tensor]:
        """Buffers of the network, such as running statistics; none where they never change."""
        return list(self.module.buffers()) if self.bench.keeps_state else []

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return {
            "module": {name: t.clone() for name, t in self.module.state_dict().items()},
            "slots": [tuple(t.clone() for t in slots) for slots in self.slots],
            "count": self.count,
            "ages": list(self.ages),
            "action": self.action.state_dict() if self.action else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`, to the bit."""
        self.module.load_state_dict(state["module"])
        device = self.bench.training.device
        self.slots = [tuple(t.to(device) for t in slots) for slots in state["slots"]]
        self.count, self.ages = state["count"], list(state["ages"])
        if self.action is not None:
            self.action.load_state_dict({k: t.to(device) for k, t in state["action"].items()})
