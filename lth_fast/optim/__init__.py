"""Optimizers and masks: torch's Adam, AdamW and SGD in one fused pass, and ``apply_masks`` for any other optimizer."""

from lth_fast.optim.adam import Adam, AdamW
from lth_fast.optim.dense_state import dense_optimizer_state, load_dense_optimizer_state
from lth_fast.optim.masks import apply_masks
from lth_fast.optim.sgd import SGD

__all__ = ["SGD", "Adam", "AdamW", "apply_masks", "dense_optimizer_state", "load_dense_optimizer_state"]
