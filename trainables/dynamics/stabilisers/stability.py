r"""The stability regulariser of Fang et al. (ACCV 2022), closed form.

Let theta be a layer's parameters as an m x n matrix (a row an input feature, the bias last; a
column an output). One update theta <- d theta + V is the matrix A = [[d I, V], [0, I]], and the
product C of all updates since the anchor keeps the form [[a I, S], [0, I]]. The regularised loss
is

    L + alpha * relu(sigma_1(C) - 1)                                     (Fang et al., eq. 17)

and with s the largest singular value of S,

    sigma_1(C) = 1/2 [ sqrt((1 + a)^2 + s^2) + sqrt((1 - a)^2 + s^2) ],

so no singular value decomposition of C is needed. For a <= 1 the relu is never inactive.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.linalg import vector_norm

from trainables.domain import TORCH_OPTIMISER, InputError, Mistake, Training
from trainables.dynamics.layers import (
    CONVOLUTIONS,
    SMALLEST_NORM,
    as_matrix,
    by_feature_row,
    features_of,
    from_matrix,
    largest_singular_value,
    layer_mistakes,
    top_singular_pair,
    weight_first,
)
from trainables.dynamics.optimisers import Optimiser
from trainables.dynamics.stabilisers.base import Action, AtOutputs, Setting, Stabiliser, Step
from trainables.options import as_names, choice, flag, layer_names
from trainables.tasks import Task

LAYERS = (nn.Linear, *CONVOLUTIONS)


def excess(s: Tensor, a: float = 1.0) -> Tensor:
    """sigma_1(C) - 1 without cancellation.

    Subtracting 1 from sigma_1 loses everything at small s: at s = 1e-7 in float32 the plain
    difference is 0 where the truth is 5e-8.

    Args:
        s: largest singular value of S, >= 0, any shape.
        a: accumulated decay factor; 1 where weight decay is part of the update. Its sign, which
            alternates where a step decays by more than the whole parameter, changes nothing.

    Returns:
        A tensor like `s`; its derivative is (s / 2)(1 / sqrt((1 + a)^2 + s^2) + 1 / sqrt((1 -
        a)^2 + s^2)), which for a = 1 lies in [1/2, 1).
    """
    a = abs(a)
    square = s * s
    # A float's ** raises where it overflows; a product becomes infinite like any blown-up number.
    wide = square / (torch.sqrt((1 + a) * (1 + a) + square) + (1 + a))
    gap = abs(1 - a)
    narrow = s if gap == 0 else square / (torch.sqrt(gap * gap + square) + gap)
    return 0.5 * (wide + narrow) + max(a - 1.0, 0.0)


def slope(s: float, a: float = 1.0) -> float:
    """Derivative of `excess` by s; 1/2 at s = 0 for a = 1, and 0 there for other a."""
    a = abs(a)
    gap = 1.0 if a == 1 else s / math.hypot(1 - a, s)
    return 0.5 * (s / math.hypot(1 + a, s) + gap)


def one_step_matrix(update: Tensor, decay: float = 1.0) -> Tensor:
    """A = [[d I, V], [0, I]] of one update (Fang et al., eq. 9)."""
    m, n = update.shape
    top = torch.cat([decay * torch.eye(m, dtype=update.dtype, device=update.device), update], 1)
    bottom = torch.eye(m + n, dtype=update.dtype, device=update.device)[m:]
    return torch.cat([top, bottom])


#: Weight (outputs, ...) and bias (outputs,), if any, of a layer, or something shaped like them.
Parts = Sequence[Tensor]


class Product:
    """The product C of a layer's updates since the anchor, as the pair (a, S).

    Args:
        order: `left` multiplies new updates from the left (the paper: S <- d S + V, old updates
            fade), `right` from the right (the authors' program: S <- S + a V, new updates fade).
            For d = 1 both are the net displacement.
        decay: d, the factor on the parameters in each update.
    """

    def __init__(self, order: Literal["left", "right"], decay: float) -> None:
        self.order, self.decay = order, decay
        self.reset()

    def reset(self) -> None:
        """Make the present parameters the anchor: C = I."""
        self._displacement: Parts | None = None
        self._factor = 1.0

    def _ahead(self, update: Parts) -> Parts:
        """S once `update` is made."""
        if self.order == "right" and self._factor != 1.0:
            update = [self._factor * part for part in update]
        if self._displacement is None:
            return update
        fade = self.decay if self.order == "left" else 1.0
        return [
            (s if fade == 1.0 else fade * s) + v
            for s, v in zip(self._displacement, update, strict=True)
        ]

    def penalty(self, update: Parts) -> Tensor:
        """sigma_1 - 1 of C once `update` is made, differentiable by the update."""
        s = largest_singular_value(as_matrix(self._ahead(update)))
        return excess(s, self._factor * self.decay)

    def pull(self, update: Parts, strength: float = 1.0) -> Parts:
        """Derivative of strength x `penalty` by the update."""
        ahead = [part.detach() for part in self._ahead(update)]
        strength *= self._factor if self.order == "right" else 1.0
        a = self._factor * self.decay
        if ahead[0].shape[0] > 1:
            s, direction = top_singular_pair(as_matrix(ahead))
            return from_matrix(strength * slope(s, a) * direction, ahead)
        # One output: the norm of all entries, without laying them side by side.
        s = math.hypot(*(float(vector_norm(part, dtype=torch.float64)) for part in ahead))
        if s < SMALLEST_NORM:
            return [torch.zeros_like(part) for part in ahead]
        weight = strength * slope(s, a) / s
        return [weight * part for part in ahead]

    def accumulate(self, update: Parts) -> None:
        """C <- A C, or C A: with the actual update, never the predicted one."""
        self._displacement = self._ahead(update)
        self._factor *= self.decay

    def state(self) -> dict[str, Tensor]:
        """The pair (a, S), S part by part."""
        if self._displacement is None:
            return {}
        # In float64 whatever the training's dtype: rounded, it would not go on to the bit.
        factor = torch.tensor(self._factor, dtype=torch.float64)
        parts = {f"displacement.{i}": part for i, part in enumerate(self._displacement)}
        return {"factor": factor, **parts}

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from `state`."""
        self.reset()
        if state:
            self._factor = float(state["factor"])
            self._displacement = [state[f"displacement.{i}"] for i in range(len(state) - 1)]


@dataclass(frozen=True)
class Stability(Stabiliser):
    """L + alpha sum over layers of (sigma_1(C) - 1), sigma_1 in closed form, one backward pass.

    Args:
        mode: how the predicted update V is differentiated. `analytic`: the gradient of the layer
            is written from its features and the outputs and sent through the optimiser's rule, so
            that the penalty acts on everything upstream, and on the layer itself through the
            outputs (for an absolute error not on the layer: a sign is locally constant). It needs
            the last layer, linear or a plain convolution, and a loss with a closed-form output
            gradient. `generic`: V is a dry run of the step and its derivative by the layer is the
            identity (constant gradient nearby); any loss, layer and optimiser. `auto` is
            analytic where that is possible.
        order: `left` (the paper) or `right` (the authors' program); they differ only for d < 1.
        layers: names of linear and convolutional layers; None takes the task's, usually the last.
        anchor: when the product is forgotten: `never`, each `epoch`, or every so many steps.
        track_decay: take d = 1 - lr x weight_decay out of the update, for decoupled weight decay.
            False leaves all of the decay in V, so that S is the true displacement.
    """

    mode: Literal["auto", "analytic", "generic"] = "auto"
    order: Literal["left", "right"] = "left"
    layers: tuple[str, ...] | None = None
    anchor: str | int = "never"
    track_decay: bool = False

    name: ClassVar[str] = "stability"
    #: Whether loss and penalty are differentiated one after the other, as in the authors' program.
    two_passes: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "layers", as_names(self.layers))
        mistakes = [
            *choice("stabiliser.mode", self.mode, ("auto", "analytic", "generic")),
            *choice("stabiliser.order", self.order, ("left", "right")),
            *flag("stabiliser.track_decay", self.track_decay),
            *self._anchor_mistakes(),
            *layer_names("stabiliser.layers", self.layers),
        ]
        if mistakes:
            raise InputError(mistakes)

    def _anchor_mistakes(self) -> Iterable[Mistake]:
        anchor = self.anchor
        whole = isinstance(anchor, int) and not isinstance(anchor, bool)
        if anchor not in ("never", "epoch") and not (whole and int(anchor) >= 1):
            yield Mistake(
                "stabiliser.anchor", anchor, "never, epoch or a number of steps >= 1", "use never"
            )

    def acts_at_outputs(self, task: Task, module: nn.Module, inputs: Tensor) -> bool:
        """Where the gradient of the layer is written from its features and the outputs."""
        several = self.layers is not None and len(self.layers) > 1
        if self.mode == "generic" or several or task.loss.output_gradient is None:
            return False
        if self.last_layer(task) is None:
            return False
        return self._sees_features(task, module, inputs)

    def last_layer(self, task: Task) -> str | None:
        """The layer that is regularised, where that is one."""
        return (self.layers or (task.regularised_layer,))[0]

    def _sees_features(self, task: Task, module: nn.Module, inputs: Tensor) -> bool:
        """Whether what leaves the layer leaves the network, and its features are known."""
        name = layers_of(self, task.regularised_layer)[0]
        watch = _Watch(module.get_submodule(name))
        return watch.features(module.eval()(inputs)) is not None

    def mistakes(self, task: Task, training: Training) -> Iterable[Mistake]:
        """Layers that there are not, a mode that the task does not allow, a decay that is none."""
        if self.track_decay and training.decay != "decoupled":
            yield Mistake(
                "stabiliser.track_decay",
                True,
                "only decoupled weight decay is a factor on the parameters",
                "set decay: decoupled, or leave track_decay out",
            )
        if self.layers is None and task.regularised_layer is None:
            yield Mistake(
                "stabiliser.layers",
                None,
                f"{task.name} has no layer for a regulariser to act on",
                "hold alpha at 0, or use a stabiliser that acts on gradients, such as clip-norm",
            )
            return
        if self.layers is None and self.mode != "analytic":
            return
        module = task.module(0)
        wrong = layer_mistakes("stabiliser.layers", self.layers or (), module, LAYERS)
        yield from wrong
        if self.mode == "analytic" and not wrong:
            yield from self._analytic_mistakes(task, module)
        if self.mode == "analytic" and training.optimiser.startswith(TORCH_OPTIMISER):
            yield Mistake(
                "stabiliser.mode",
                "analytic",
                f"{training.optimiser} cannot be differentiated",
                "use mode: generic, or a built-in optimiser",
            )

    def _analytic_mistakes(self, task: Task, module: nn.Module) -> Iterable[Mistake]:
        if task.loss.output_gradient is None:
            yield Mistake(
                "stabiliser.mode",
                "analytic",
                f"the loss {task.loss.name} has no closed-form output gradient",
                "use mode: generic, or a task with an absolute or squared error",
            )
            return
        names = layers_of(self, task.regularised_layer)
        inputs = task.train_data()[0][:1]
        if len(names) > 1 or not self._sees_features(task, module, inputs):
            yield Mistake(
                "stabiliser.mode",
                "analytic",
                f"{', '.join(names)}: not a linear or convolutional layer whose output is the "
                "network's",
                "use mode: generic",
            )

    def product(self, decay: float) -> Product:
        """The product of one layer's updates, at the anchor."""
        return Product(self.order, decay)

    def start(self, setting: Setting, alpha: float) -> Action:
        """Begin at the anchor."""
        return Regularisation(self, setting, alpha)


def layers_of(options: Stability, default: str | None) -> tuple[str, ...]:
    """The layers that are named, or the task's."""
    if options.layers is not None:
        return options.layers
    assert default is not None  # `Stability.mistakes` refuses it
    return (default,)


class _Watch:
    """Remembers what entered and left a layer in the last forward pass."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self._inputs: Tensor | None = None
        self._outputs: Tensor | None = None
        layer.register_forward_hook(self._remember)

    def _remember(self, _layer: nn.Module, inputs: tuple[Tensor, ...], outputs: Tensor) -> None:
        self._inputs, self._outputs = inputs[0], outputs

    def features(self, outputs: Tensor) -> Tensor | None:
        """Features of the layer, where what left it is what left the network; else None."""
        if self._outputs is not outputs or self._inputs is None:
            return None
        return features_of(self.layer, self._inputs)


class Regularisation(Action):
    """The stability regulariser along one training."""

    def __init__(self, options: Stability, setting: Setting, alpha: float) -> None:
        self.options, self.alpha = options, alpha
        self.optimiser = setting.optimiser
        names = layers_of(options, setting.default_layer)
        position = {id(p): i for i, p in enumerate(setting.parameters)}
        layers = [setting.module.get_submodule(name) for name in names]
        self.layers = [[position[id(p)] for p in weight_first(layer)] for layer in layers]
        self.decay = self._decay()
        self.products = [options.product(self.decay) for _ in layers]
        self._output_gradient = setting.loss.output_gradient
        possible = options.mode != "generic" and len(layers) == 1
        possible = possible and self.optimiser.splits
        analytic = possible and self._output_gradient is not None
        self._layer = layers[0]
        self._watch = _Watch(layers[0]) if analytic and setting.runs else None
        anchor = options.anchor
        self._period = setting.steps_per_epoch if anchor == "epoch" else anchor

    def _decay(self) -> float:
        """What an update leaves of a parameter, where the product tracks it."""
        rule = self.optimiser
        return 1.0 - rule.lr * rule.weight_decay if self.options.track_decay else 1.0

    def follow(self, optimiser: Optimiser) -> None:
        """See `Action`."""
        self.optimiser = optimiser
        self.decay = self._decay()
        for product in self.products:
            product.decay = self.decay

    def begin(self, step: int) -> bool:
        """Forget the product where an anchor is due."""
        if isinstance(self._period, int) and step % self._period == 0:
            for product in self.products:
                product.reset()
        return False

    def gradients(self, step: Step) -> tuple[Tensor, ...]:
        """Gradients of the regularised loss."""
        features = self._watch.features(step.outputs) if self._watch is not None else None
        return self._generic(step) if features is None else self._analytic(step, features)

    def _analytic(self, step: Step, features: Tensor) -> tuple[Tensor, ...]:
        """Gradients of L + alpha P with P differentiated through the layer's own gradient G.

        G = delta^T h in closed form, delta the loss's derivative by the outputs and h the
        features. With g = dP/dG held, the derivative of P by everything upstream is that of
        <g, G> = sum delta (h g^T): delta g at the features and h g^T at delta. Both are handed to
        the backward pass of the loss where they arise, so that one pass does for both.
        """
        upstream, by_parameter = self._upstream(step, features)
        gradients = self._backward(step, upstream)
        for index, part in by_parameter.items():
            gradients[index] = gradients[index] + part
        return tuple(gradients)

    def at_outputs(self, step: Step, entered: Tensor | None) -> AtOutputs:
        """What `_analytic` hands to the backward pass, as far as the outputs and the layer."""
        assert entered is not None
        entered = entered.detach().requires_grad_()
        with torch.enable_grad():
            features = features_of(self._layer, entered)
            assert features is not None
            upstream, by_parameter = self._upstream(step, features)
        places, values = [place for place, _ in upstream], [value for _, value in upstream]
        one = torch.ones_like(step.loss)
        ends = [step.outputs, entered]
        outputs, more = torch.autograd.grad([step.loss, *places], ends, [one, *values])
        return AtOutputs(outputs, more, by_parameter)

    def _upstream(
        self, step: Step, features: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor]], dict[int, Tensor]]:
        """Inner places with the gradients to hand in there; and gradients at constant G."""
        assert self._output_gradient is not None
        delta = self._output_gradient(step.outputs, step.targets)
        delta = by_feature_row(delta, self._layer)
        errors, rows = delta.detach(), features.detach()
        by_gradient, by_parameter = self._derivatives(step, errors, rows)
        weight = by_gradient[0].flatten(1)
        upstream: list[tuple[Tensor, Tensor]] = []
        if features.requires_grad:
            upstream.append((features, errors @ weight))
        if delta.requires_grad:
            upstream.append((delta, F.linear(rows, weight, *by_gradient[1:])))
        return upstream, dict(zip(self.layers[0], by_parameter, strict=False))

    def _backward(self, step: Step, upstream: list[tuple[Tensor, Tensor]]) -> list[Tensor]:
        """Gradients of the loss and of what is handed in at inner places."""
        parameters = list(step.parameters)
        places, values = [place for place, _ in upstream], [value for _, value in upstream]
        if not self.options.two_passes or not upstream:
            one = torch.ones_like(step.loss)
            return list(torch.autograd.grad([step.loss, *places], parameters, [one, *values]))
        first = torch.autograd.grad(step.loss, parameters, retain_graph=True)
        second = torch.autograd.grad(
            places, parameters, values, allow_unused=True, materialize_grads=True
        )
        return [g + h for g, h in zip(first, second, strict=True)]

    def _derivatives(
        self, step: Step, delta: Tensor, features: Tensor
    ) -> tuple[Parts, Sequence[Tensor]]:
        """What alpha P owes to G and to theta at constant G, through the optimiser's own rule."""
        layer = self.layers[0]
        old = [step.parameters[i].detach() for i in layer]
        gradients = [delta.T @ features, delta.sum(0)][: len(layer)]
        if gradients[0].shape != old[0].shape:
            gradients[0] = gradients[0].reshape(old[0].shape)
        factor = self.optimiser.linear
        if factor is None:
            return self._through_the_rule(step, old, gradients)
        update = self._update(layer, step, old, gradients)
        by_gradient = self.products[0].pull(update, self.alpha * factor)
        decay = self.optimiser.weight_decay
        if decay and self.optimiser.coupled:
            return by_gradient, [decay * part for part in by_gradient]
        if decay and self.decay == 1.0:  # the decay itself, -lr decay theta, is part of the update
            share = -self.optimiser.lr * decay / factor
            return by_gradient, [share * part for part in by_gradient]
        return by_gradient, ()

    def _through_the_rule(
        self, step: Step, old: list[Tensor], gradients: list[Tensor]
    ) -> tuple[Parts, Sequence[Tensor]]:
        """`_derivatives` for a rule whose step is no linear function of the gradient."""
        leaves = [tensor.requires_grad_() for tensor in (*gradients, *old)]
        with torch.enable_grad():
            update = self._update(self.layers[0], step, old, gradients)
        pull = self.products[0].pull([part.detach() for part in update], self.alpha)
        parts = torch.autograd.grad(update, leaves, pull, allow_unused=True, materialize_grads=True)
        return parts[: len(old)], parts[len(old) :]

    def _update(
        self, layer: Sequence[int], step: Step, parameters: Parts, gradients: Parts
    ) -> Parts:
        """What the optimiser would add to a layer for these gradients, without tracked decay."""
        decays = self.decay == 1.0
        return [
            self.optimiser.increment(p, g, step.slots[i], step.count, decays)
            for i, p, g in zip(layer, parameters, gradients, strict=True)
        ]

    def _generic(self, step: Step) -> tuple[Tensor, ...]:
        gradients = list(step.plain_gradients())
        for layer, product in zip(self.layers, self.products, strict=True):
            old = [step.parameters[i].detach() for i in layer]
            update = self._update(layer, step, old, [gradients[i] for i in layer])
            parts = product.pull(update, self.alpha)
            for i, part in zip(layer, parts, strict=True):
                gradients[i] = gradients[i] + part
        return tuple(gradients)

    def moved(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> None:
        """Multiply the actual update onto the product."""
        for layer, product in zip(self.layers, self.products, strict=True):
            product.accumulate([self._added(before[i], after[i]) for i in layer])

    def _added(self, before: Tensor, after: Tensor) -> Tensor:
        return after - (before if self.decay == 1.0 else self.decay * before)

    def state_dict(self) -> dict[str, Tensor]:
        """The products."""
        return {
            f"{number}.{name}": tensor
            for number, product in enumerate(self.products)
            for name, tensor in product.state().items()
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from `state_dict`."""
        for number, product in enumerate(self.products):
            mine: dict[str, Any] = {
                name.partition(".")[2]: tensor
                for name, tensor in state.items()
                if name.partition(".")[0] == str(number)
            }
            product.load(mine)
