"""Training: seeded batches, steppers that advance a model, evaluation. Knows nothing of levels or files."""

from lth_fast.train.batches import Batches, LoaderBatches, ResidentBatches
from lth_fast.train.evaluate import Evaluation, evaluate
from lth_fast.train.optimizers import OptimizerRecipe
from lth_fast.train.seeds import Seeds
from lth_fast.train.stepper import EagerStepper, Stepper, StepperChoice, choose_stepper

__all__ = [
    "Batches",
    "EagerStepper",
    "Evaluation",
    "LoaderBatches",
    "OptimizerRecipe",
    "ResidentBatches",
    "Seeds",
    "Stepper",
    "StepperChoice",
    "choose_stepper",
    "evaluate",
]
