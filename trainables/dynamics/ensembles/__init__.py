"""Losses and gradients of many trajectories of one network at once.

A backend gets stacked parameters, one row a trajectory. Its result for a trajectory must not
depend, to the bit, on which others are stacked with it: `choose` checks that.
"""
