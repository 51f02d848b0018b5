"""Samplers that choose the next points, all on Optuna's interface."""
