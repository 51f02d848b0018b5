"""Closed-form stability bounds: one file a body of work, each with its source."""

from analysis.theory.edge_of_stability import decay_bound, quadratic_threshold
from analysis.theory.one_layer_cnn import OneLayerCNN
from analysis.theory.overlays import Overlay, overlays

__all__ = ["OneLayerCNN", "Overlay", "decay_bound", "overlays", "quadratic_threshold"]
