"""From a configuration to an experiment that can run."""

from __future__ import annotations

from functools import partial

import torch

from lth_fast import data, models
from lth_fast.experiment.config import Config
from lth_fast.experiment.experiment import Experiment, Loaders
from lth_fast.prune import prune_all
from lth_fast.train import OptimizerRecipe, Seeds
from lth_fast.train.optimizers import optimizer_class

# torch's one-pass implementations; the plain ones take a pass over memory per operation.
_FUSED = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD, torch.optim.Adagrad)


def device_of(config: Config) -> torch.device:
    """Where the run trains.

    Raises:
        ValueError: A GPU was asked for and there is none.
    """
    if not config.gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(
            "--gpu: expected a CUDA device, found none; run on the CPU with: "
            f"python -m lth_fast {config.net} {config.dataset}"
        )
    return torch.device("cuda", torch.cuda.current_device())


def build_experiment(config: Config, replicate: int = 0) -> Experiment:
    """Load the data, draw the initial weights and put the experiment together.

    Raises:
        FileNotFoundError: The data set is neither there nor to be had.
        ImportError: The data set or the network needs a package that is not installed.
        ValueError: The network does not fit the data set.
    """
    device = device_of(config)
    seeds = Seeds(config.seed, config.init_seed, config.order_seed)
    splits = data.load(
        config.dataset, config.data, train_batch_size=config.batch_size, split_seed=seeds.stream("split")
    )
    model = models.build(
        config.net,
        splits.train.input_shape,
        splits.train.classes,
        generator=seeds.generator("init", replicate),
    )
    kind = optimizer_class(config.optim)
    settings = {"lr": config.learn_rate}
    if kind in _FUSED:
        settings["fused"] = True
    return Experiment(
        model=model,
        loaders=Loaders(*(split if split is None else split.to(device) for split in splits)),
        criterion=torch.nn.CrossEntropyLoss(),
        optimizer=OptimizerRecipe(kind, settings),
        prune_net=partial(prune_all, rate=config.prune_rate),
        iterations=config.iter,
        rounds=config.rounds,
        rewind=config.rewind,
        evaluate_every=config.step,
        seeds=seeds,
        replicate=replicate,
        device=device,
        checkpoint_seconds=config.checkpoint_seconds,
    )
