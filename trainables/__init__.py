"""What is trained: tasks, update rules, verdicts. Needs numpy and torch alone (ray in `tune`)."""

import os

#: Version of the whole project; part of every spec hash, since numerics may change with it.
__version__ = "0.1.0"

# MKL reads this at its first product. Without it, how a product is rounded depends on where in
# memory its operands begin, and with that a trajectory on what it is stacked with.
os.environ.setdefault("MKL_CBWR", "AUTO")
