"""From a configuration to an experiment that can run."""

from __future__ import annotations

import contextlib
import copy
import io
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lth_fast import data, models
from lth_fast.experiment.config import Config
from lth_fast.experiment.experiment import Experiment, Loaders
from lth_fast.experiment.pruning import Evidence, pruned_names, pruning_function
from lth_fast.prune.layers import prunable
from lth_fast.record import Run
from lth_fast.train import OptimizerRecipe, ResidentBatches, Seeds
from lth_fast.train.schedule import StepSchedule


def training_device(gpu: bool, called: str = "--gpu") -> torch.device:
    """The CPU, or with ``gpu`` the current CUDA device.

    Raises:
        ValueError: There is none. The message calls the argument ``called``.
    """
    if not gpu:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"{called}: expected a CUDA device, found none")
    return torch.device("cuda", torch.cuda.current_device())


def build_experiment(config: Config, ticket: Run | None = None, *, quiet: bool = False) -> Experiment:
    """Load the data, draw the initial weights of replicate 0 and put the experiment together.

    Args:
        config: The settings.
        ticket: For a control arm, the finished ticket run.
        quiet: Say nothing of downloads.

    Raises:
        FileNotFoundError: The data set is neither there nor to be had.
        ImportError: The data set or the network needs a package that is not installed.
        ValueError: The network does not fit the data set, or is none.
    """
    device = training_device(config.gpu)
    seeds = Seeds(config.seed, config.init_seed, config.order_seed)
    with contextlib.redirect_stderr(io.StringIO()) if quiet else contextlib.nullcontext():
        splits = data.load(
            config.dataset,
            config.data,
            train_batch_size=config.batch_size,
            augment=config.augment,
            split_seed=seeds.stream("split"),
            **({} if config.validation is None else {"validation": config.validation}),
        )

    def draw(seed: int) -> nn.Module:
        try:
            return models.build(
                config.net,
                splits.train.input_shape,
                splits.train.classes,
                dropout=config.dropout,
                init=config.init,
                generator=torch.Generator().manual_seed(seed),
            )
        except TypeError as error:
            raise ValueError(str(error)) from error
        except (ValueError, ImportError):
            raise
        except Exception as error:  # no memory, or whatever a network from elsewhere raises
            expected = f"one that can be built for images {[*splits.train.input_shape]} of {config.dataset}"
            raise ValueError(f"network {config.net}: expected {expected}, got {_in_a_line(error)}") from error

    model = draw(seeds.stream("init"))
    _check_fit(model, config, splits.train.input_shape, splits.train.classes)
    _check_last_batch(model, config, len(splits.train.images), splits.train.input_shape)
    if config.rounds:
        _check_layers(model, config)
    loaders = Loaders(*(split if split is None else split.to(device) for split in splits))
    criterion = torch.nn.CrossEntropyLoss()

    def prune_net_of(initial: nn.Module) -> Callable[[nn.Module], nn.Module]:
        evidence = Evidence(
            initial=dict(initial.named_parameters()),
            criterion=criterion,
            batch=lambda seed: ResidentBatches(loaders.train, lambda epoch: seed, lambda epoch: seed).next(),
        )
        return pruning_function(
            config.scope,
            config.prune_rate,
            config.fc_rate,
            config.whole,
            config.prune_bias,
            config.score,
            config.distribution,
            evidence,
            config.count,
        )

    scheduled = bool(config.warmup or config.milestones)
    return Experiment(
        model=model,
        loaders=loaders,
        criterion=criterion,
        optimizer=OptimizerRecipe.named(
            config.optim,
            config.learn_rate,
            device,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        ),
        prune_net=prune_net_of(model),
        prune_net_of=prune_net_of,
        iterations=config.iter,
        rounds=config.rounds,
        rewind=config.rewind,
        retrain=config.retrain,
        evaluate_every=config.step,
        seeds=seeds,
        replicates=config.replicates,
        device=device,
        checkpoint_seconds=config.checkpoint_seconds,
        schedule=StepSchedule(config.warmup, config.milestones) if scheduled else None,
        precision=config.precision,
        keep=config.keep,
        keep_optimizer=config.keep_optimizer,
        prune_bias=config.prune_bias,
        branch=config.branch,
        ticket=ticket,
        plan=config.plan,
        redraw=lambda seed: draw(seed).state_dict(),
    )


def _check_fit(model: nn.Module, config: Config, input_shape: tuple[int, int, int], classes: int) -> None:
    """Refuse a network that cannot take the images of the data set or has too few outputs, which only a forward tells.

    Raises:
        ValueError: It does not fit; the message says why.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"network {config.net}: expected parameters to train, got none that requires a gradient")
    expected = f"network {config.net}: expected one that maps images {[2, *input_shape]} of {config.dataset} to logits"
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        try:
            outputs = copy.deepcopy(model).eval()(torch.zeros(2, *input_shape))
        except Exception as error:  # whatever the forward of a network from elsewhere raises
            raise ValueError(f"{expected} [2, {classes}], got {_in_a_line(error)}") from error
    given = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
    # More outputs than classes can be trained.
    if not isinstance(outputs, Tensor) or outputs.dim() != 2 or len(outputs) != 2 or outputs.shape[1] < classes:
        raise ValueError(f"{expected} [2, {classes}], got {given}")


def _check_last_batch(model: nn.Module, config: Config, images: int, input_shape: tuple[int, int, int]) -> None:
    """Refuse a batch size that leaves a batch of a single image to a network that trains on two but not on one."""
    if images % config.batch_size != 1 and config.batch_size != 1:
        return

    def failure(batch: int) -> Exception | None:
        try:
            copy.deepcopy(model).train()(torch.zeros(batch, *input_shape))
        except Exception as error:  # of batch normalisation over features, for instance
            return error
        return None

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        error = failure(1)
        if error is not None and failure(2) is None:
            raise ValueError(
                f"--batch_size: expected one that leaves no batch of a single image, on which {config.net} cannot be "
                f"trained, got {config.batch_size} for {images} images ({_in_a_line(error)})"
            ) from error


def _check_layers(model: nn.Module, config: Config) -> None:
    """Refuse a network without layers to prune, or whose layers are all kept whole."""
    if not prunable(model):
        raise ValueError(f"network {config.net}: expected one with Linear or Conv2d layers, which are pruned, got none")
    if not pruned_names(model, config.whole, config.prune_bias):
        raise ValueError(
            f"--whole: expected to leave layers of {config.net} to prune, got {','.join(config.whole)}, which are all; "
            "--whole none prunes them"
        )


def _in_a_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
