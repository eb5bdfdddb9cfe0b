"""The lottery ticket experiment: configuration, the loop, and what a person sees of it."""

from lth_fast.experiment.config import Config
from lth_fast.experiment.iterative import LevelResult, Result, iterative_pruning

__all__ = ["Config", "LevelResult", "Result", "iterative_pruning"]
