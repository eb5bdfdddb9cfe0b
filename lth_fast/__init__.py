"""Lottery-ticket experiments and masked layers for PyTorch.

``python -m lth_fast lenet mnist`` runs an experiment; :func:`iterative_pruning` does the same for a model of your own;
:mod:`lth_fast.nn` has layers that hold a mask and keep the plain layer's parameters and ``state_dict``.
"""

from . import _compatibility as _compatibility  # first: refuses a build for another torch before it is loaded
from . import nn, ops, optim, prune

__all__ = ["nn", "ops", "optim", "prune"]
__version__ = "0.1.0"
