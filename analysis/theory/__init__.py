"""Closed-form stability bounds, one file a subject, each with its source.

Everything takes numbers or arrays of points (lists and torch tensors too, whose gradients are left
behind), checks shapes and domains, and raises `InputError` naming the argument. For numbers the
result is a float, for arrays an array of their common shape. Where a paper's formula is wrong, the
corrected one has the plain name and the paper's the same name with `_as_printed`, with the reason.

| file | subject |
|---|---|
| heat, beltrami | step sizes of two partial differential equations |
| images, linear_cnn, multilayer_cnn | weight decays that keep a linearised CNN stable |
| one_layer_cnn | exact phases of the non-linear one-layer CNN |
| scalar_examples, deep_linear, two_layer_relu, residual | step sizes from Lyapunov's method |
| edge_of_stability, sgd | curvature that each optimiser tolerates |
| softmax | where softmax rounds its losers away |
| overlays | which of these hold for a sweep |
"""

from analysis.theory.beltrami import (
    BeltramiRun,
    beltrami_cfl_bound,
    beltrami_cfl_bound_as_printed,
    beltrami_divergence_bound,
    beltrami_loss,
    beltrami_reach,
    beltrami_restrained_band,
    beltrami_sharpness,
    beltrami_signal,
    beltrami_simulate,
    beltrami_step,
)
from analysis.theory.deep_linear import (
    balanced_layers,
    deep_linear_descent,
    deep_linear_lr_bound,
    identity_layers,
    identity_start_lr_bound,
    largest_singular_value_bound,
    nearest_psd,
    network_product,
    solution_lr_bound,
    solution_sharpness,
)
from analysis.theory.edge_of_stability import decay_bound, quadratic_threshold
from analysis.theory.heat import (
    heat_amplifier,
    heat_cfl_bound,
    heat_dirichlet_bound,
    heat_growth,
    heat_simulate,
    heat_start,
    heat_step,
    mesh_ratio,
)
from analysis.theory.images import (
    checkerboard,
    checkerboard_eigenvalue,
    patch_extremes,
    patch_gram,
    power_spectrum,
    spectrum_extremes,
)
from analysis.theory.linear_cnn import (
    DecayRange,
    activated_decay_range,
    activated_decay_range_as_printed,
    linear_cnn_amplifier,
    linear_cnn_decay_range,
    linear_cnn_decay_range_as_printed,
    nesterov_amplifier,
    nesterov_decay_range,
    nesterov_decay_range_as_printed,
    nesterov_lr,
    nesterov_momentum,
    not_activated_decay_range,
)
from analysis.theory.multilayer_cnn import multilayer_gain, multilayer_gain_as_printed
from analysis.theory.one_layer_cnn import (
    CNNPhases,
    OneLayerCNN,
    checkerboard_share,
    one_layer_cnn_exponent,
    one_layer_cnn_loss,
    one_layer_cnn_path,
    one_layer_cnn_phases,
)
from analysis.theory.overlays import Overlay, overlays
from analysis.theory.residual import (
    common_eigenvalues,
    double_path,
    identity_limit,
    identity_lr_bound,
    identity_path,
    identity_rate,
    product_path,
    residual_lr_bound,
    scalar_solution_lr_bound,
)
from analysis.theory.scalar_examples import (
    TWO_MINIMA_BARRIER,
    even_power_radius,
    even_power_step,
    three_halves_cycle,
    three_halves_starts,
    three_halves_step,
    two_minima_curvature,
    two_minima_gradient,
    two_minima_limit,
    two_minima_loss,
    two_minima_thresholds,
)
from analysis.theory.sgd import SGDStability, trace_threshold
from analysis.theory.softmax import softmax_collapse_gap
from analysis.theory.two_layer_relu import (
    relu_descent,
    relu_lr_bound,
    relu_output_bound,
    relu_outputs,
)

__all__ = [
    "TWO_MINIMA_BARRIER",
    "BeltramiRun",
    "CNNPhases",
    "DecayRange",
    "OneLayerCNN",
    "Overlay",
    "SGDStability",
    "activated_decay_range",
    "activated_decay_range_as_printed",
    "balanced_layers",
    "beltrami_cfl_bound",
    "beltrami_cfl_bound_as_printed",
    "beltrami_divergence_bound",
    "beltrami_loss",
    "beltrami_reach",
    "beltrami_restrained_band",
    "beltrami_sharpness",
    "beltrami_signal",
    "beltrami_simulate",
    "beltrami_step",
    "checkerboard",
    "checkerboard_eigenvalue",
    "checkerboard_share",
    "common_eigenvalues",
    "decay_bound",
    "deep_linear_descent",
    "deep_linear_lr_bound",
    "double_path",
    "even_power_radius",
    "even_power_step",
    "heat_amplifier",
    "heat_cfl_bound",
    "heat_dirichlet_bound",
    "heat_growth",
    "heat_simulate",
    "heat_start",
    "heat_step",
    "identity_layers",
    "identity_limit",
    "identity_lr_bound",
    "identity_path",
    "identity_rate",
    "identity_start_lr_bound",
    "largest_singular_value_bound",
    "linear_cnn_amplifier",
    "linear_cnn_decay_range",
    "linear_cnn_decay_range_as_printed",
    "mesh_ratio",
    "multilayer_gain",
    "multilayer_gain_as_printed",
    "nearest_psd",
    "nesterov_amplifier",
    "nesterov_decay_range",
    "nesterov_decay_range_as_printed",
    "nesterov_lr",
    "nesterov_momentum",
    "network_product",
    "not_activated_decay_range",
    "one_layer_cnn_exponent",
    "one_layer_cnn_loss",
    "one_layer_cnn_path",
    "one_layer_cnn_phases",
    "overlays",
    "patch_extremes",
    "patch_gram",
    "power_spectrum",
    "product_path",
    "quadratic_threshold",
    "relu_descent",
    "relu_lr_bound",
    "relu_output_bound",
    "relu_outputs",
    "residual_lr_bound",
    "scalar_solution_lr_bound",
    "softmax_collapse_gap",
    "solution_lr_bound",
    "solution_sharpness",
    "spectrum_extremes",
    "three_halves_cycle",
    "three_halves_starts",
    "three_halves_step",
    "trace_threshold",
    "two_minima_curvature",
    "two_minima_gradient",
    "two_minima_limit",
    "two_minima_loss",
    "two_minima_thresholds",
]
