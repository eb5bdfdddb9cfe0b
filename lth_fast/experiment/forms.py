"""In which form each layer is trained at a level: decided once, kept in the manifest, replayed ever after."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from lth_fast.experiment.experiment import Experiment
from lth_fast.nn import choices, convert, masks
from lth_fast.optim import load_dense_optimizer_state
from lth_fast.record import Replicate, open_run
from lth_fast.train.optimizers import is_elementwise

RULES = ("auto", "masked", "sparse")


def plan_source(given: Any) -> str:
    """One of :data:`RULES`, or the absolute path of the folder of a run (or its ``meta.json``) that holds a plan.

    ``~`` is expanded.

    Raises:
        ValueError: It is neither.
    """
    given = str(given)
    if given in RULES:
        return given
    expected = f"{', '.join(RULES)}, or the folder of a run that holds a plan"
    try:
        if recorded_plan(given):
            return os.path.abspath(os.path.expanduser(given))
    except (OSError, ValueError) as error:
        raise ValueError(f"{expected} ({error})") from None
    raise ValueError(expected)


def recorded_plan(path: str) -> dict[str, Any]:
    """The plan in the manifest of the run at ``path``: level → parameter name → form and how it came about.

    Raises:
        FileNotFoundError, ValueError: There is no run at ``path``, or its plan is none.
    """
    run = open_run(Path(path).parent if Path(path).name == "meta.json" else path)
    plan: dict[str, Any] = run.manifest().get("plan", {})
    try:
        forms = [(name, entry["form"]) for layers in plan.values() for name, entry in layers.items()]
    except (AttributeError, KeyError, TypeError):
        raise ValueError(f"{run.manifest_file}: plan: expected level, parameter name, form") from None
    for name, form in forms:
        if form not in ("dense", "masked", "sparse"):
            raise ValueError(f"{run.manifest_file}: plan: expected dense, masked or sparse for {name!r}, got {form!r}")
    return plan


def obstacle(experiment: Experiment) -> str | None:
    """Why the layers of this experiment keep their masked form; ``None`` if they need not."""
    if experiment.device.type != "cpu":
        return f"sparse forms are used on the CPU only, training is on {experiment.device.type}"
    if experiment.precision != "float32":
        return f"sparse forms compute in float32, the precision is {experiment.precision}"
    if not is_elementwise(experiment.optimizer.kind):
        name = experiment.optimizer.kind.__name__
        return f"{name} is not known to treat every weight by itself, so it needs the weight's shape"
    return None


def take_forms(experiment: Experiment, record: Replicate, level: int, model: nn.Module, optimizer: Optimizer) -> None:
    """Give the masked layers of ``model`` the forms that the run's plan has for this level, which is made if missing.

    Args:
        experiment: What is run.
        record: Its replicate. All replicates of a run share the plan.
        level: The level's number.
        model: With its masks, in masked form.
        optimizer: Fresh, over the parameters of ``model``; it follows them.

    Raises:
        ValueError: The plan does not fit the model.
    """
    if obstacle(experiment) is not None:
        return
    before, state = list(model.parameters()), optimizer.state_dict()
    plan = record.run.plan(level)
    if plan is None:
        rule = experiment.plan if experiment.plan in RULES else "auto"
        convert(model, form=rule, example_input=_example(experiment))
        record.run.save_plan(level, {name: vars(choice) for name, choice in choices(model).items()})
    else:
        # In another run or replicate, what was dense may have a mask, which dense would drop, and what was sparse none.
        pruned = masks(model)
        forms = {
            name: "sparse" if entry["form"] == "sparse" and name in pruned else "masked" for name, entry in plan.items()
        }
        try:
            convert(model, form=forms)
        except ValueError as error:
            raise ValueError(f"plan of level {level}: {error}") from None
    # A form changes parameters one for one, in their places.
    after = dict(zip(map(id, before), model.parameters(), strict=True))
    for group in optimizer.param_groups:
        group["params"] = [after[id(parameter)] for parameter in group["params"]]
    if optimizer.state:  # Adagrad makes its own at once
        load_dense_optimizer_state(optimizer, model, state)


def _example(experiment: Experiment) -> torch.Tensor | None:
    """Zeros of the shape of a training batch; ``None`` where only drawing from the user's loader would tell it."""
    train = experiment.loaders.train
    if not hasattr(train, "input_shape"):
        return None
    return torch.zeros((min(train.batch_size, len(train.dataset)), *train.input_shape), dtype=torch.float32)
