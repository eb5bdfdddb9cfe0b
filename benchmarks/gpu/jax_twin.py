"""LeNet replicates in JAX: ``vmap`` over replicates of a ``scan`` over steps, everything on the device."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # torch needs the device's memory too

import jax
import jax.numpy as jnp

from lth_fast.data import ResidentLoader

WIDTHS = (784, 300, 100, 10)


def make_jax_twin(
    train: ResidentLoader, replicates: int, steps: int, rate: float, density: float
) -> Callable[[], None]:
    """A call that takes ``steps`` masked Adam steps of every replicate and waits for them.

    Args:
        train: Images and labels, on the CPU; copied to JAX's device once.
        replicates, steps: How many.
        rate: Learning rate of Adam.
        density: Share of the weights that survive.
    """
    jax.config.update("jax_default_matmul_precision", "float32")  # JAX would take TF32 by itself
    images = jax.device_put(jnp.asarray(train.images.numpy().reshape(len(train.images), -1)))
    labels = jax.device_put(jnp.asarray(train.labels.numpy().astype("int32")))
    mean, std, scale, batch = train.mean[0], train.std[0], train.scale, train.batch_size

    def initial(key: Any) -> tuple[Any, Any]:
        keys = jax.random.split(key, 2 * (len(WIDTHS) - 1))
        masks, parameters = [], []
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(WIDTHS)):
            mask = jax.random.uniform(keys[2 * layer], (outputs, inputs)) < density
            weight = jax.random.normal(keys[2 * layer + 1], (outputs, inputs)) * (2 / (inputs + outputs)) ** 0.5
            masks.append(mask)
            parameters.append((jnp.where(mask, weight, 0.0), jnp.zeros(outputs)))
        return masks, parameters

    def loss_of(parameters: Any, inputs: Any, targets: Any) -> Any:
        for weight, bias in parameters[:-1]:
            inputs = jax.nn.relu(inputs @ weight.T + bias)
        weight, bias = parameters[-1]
        logits = jax.nn.log_softmax(inputs @ weight.T + bias)
        return -jnp.take_along_axis(logits, targets[:, None], 1).mean()

    def step(masks: Any, order: Any, carry: Any, number: Any) -> tuple[Any, Any]:
        parameters, first, second = carry
        indices = jax.lax.dynamic_slice(order, (number * batch % (len(order) - batch),), (batch,))
        inputs = (images[indices].astype(jnp.float32) / scale - mean) / std
        loss, grads = jax.value_and_grad(loss_of)(parameters, inputs, labels[indices])
        grads = [(jnp.where(mask, weight, 0.0), bias) for mask, (weight, bias) in zip(masks, grads, strict=True)]
        count = number + 1.0
        first = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, first, grads)
        second = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, second, grads)
        parameters = jax.tree.map(
            lambda p, m, v: p - rate * (m / (1 - 0.9**count)) / (jnp.sqrt(v / (1 - 0.999**count)) + 1e-8),
            parameters,
            first,
            second,
        )
        return (parameters, first, second), loss

    def train_one(key: Any) -> Any:
        masks, parameters = initial(key)
        zeros = jax.tree.map(jnp.zeros_like, parameters)
        order = jax.random.permutation(key, len(labels))
        carry = (parameters, zeros, zeros)
        return jax.lax.scan(lambda c, n: step(masks, order, c, n), carry, jnp.arange(steps))[1]

    run = jax.jit(jax.vmap(train_one))
    keys = jax.random.split(jax.random.key(0), replicates)
    return lambda: run(keys).block_until_ready()
