"""Training: seeded batches, steppers that advance a model, evaluation. Knows nothing of levels or files."""

from lth_fast.train.batches import Batches, LoaderBatches, ResidentBatches, loader_generators, seed_loader
from lth_fast.train.choice import StepperChoice, choose_stepper
from lth_fast.train.evaluate import Evaluation, evaluate
from lth_fast.train.graph_stepper import GraphStepper
from lth_fast.train.native_stepper import NativeStepper
from lth_fast.train.optimizers import OptimizerRecipe
from lth_fast.train.parallel_stepper import ParallelStepper
from lth_fast.train.replicate_stepper import ReplicateStepper
from lth_fast.train.seeds import Seeds, own_random_state
from lth_fast.train.stepper import EagerStepper, Stepper

__all__ = [
    "Batches",
    "EagerStepper",
    "Evaluation",
    "GraphStepper",
    "LoaderBatches",
    "NativeStepper",
    "OptimizerRecipe",
    "ParallelStepper",
    "ReplicateStepper",
    "ResidentBatches",
    "Seeds",
    "Stepper",
    "StepperChoice",
    "choose_stepper",
    "evaluate",
    "loader_generators",
    "own_random_state",
    "seed_loader",
]
