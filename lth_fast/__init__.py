"""Lottery-ticket experiments and masked layers for PyTorch.

``python -m lth_fast lenet mnist`` runs an experiment; :func:`iterative_pruning` does the same for a model of your own;
:mod:`lth_fast.nn` has layers that hold a mask and keep the plain layer's parameters and ``state_dict``.
"""

__version__ = "0.1.0"

from lth_fast import _compatibility as _compatibility  # isort: skip  refuses a build for another torch before it loads
from lth_fast import data, models, nn, ops, optim, prune, report
from lth_fast.experiment import iterative_pruning
from lth_fast.record import load_run

__all__ = ["data", "iterative_pruning", "load_run", "models", "nn", "ops", "optim", "prune", "report"]
