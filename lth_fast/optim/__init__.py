"""Optimizers and masks: torch's Adam, AdamW and SGD in one fused pass, ``apply_masks`` for any other, and gradients."""

from lth_fast.optim.adam import Adam, AdamW
from lth_fast.optim.dense_state import dense_optimizer_state, load_dense_optimizer_state
from lth_fast.optim.gradients import gradients_masked_by, mask_gradients
from lth_fast.optim.masks import apply_masks
from lth_fast.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "apply_masks",
    "dense_optimizer_state",
    "gradients_masked_by",
    "load_dense_optimizer_state",
    "mask_gradients",
]
