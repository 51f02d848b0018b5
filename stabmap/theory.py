"""`stabmap.theory` as a module to import: it is `analysis.theory` itself."""

import sys

from analysis import theory
from analysis.theory import *  # noqa: F403 - for type checkers

__all__ = theory.__all__

sys.modules[__name__] = theory
