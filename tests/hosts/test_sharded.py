"""Rows in memory that are spread over devices: a step moves nothing of their size."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import nutfree as nf
from nutfree import registry
from nutfree.minibatch.gradients import Control

N, DIM, BATCH = 40_000, 5, 200


def model(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        rows = numpyro.subsample(X, event_dim=1)
        labels = None if y is None else numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=rows @ beta), obs=labels)


def test_a_step_on_sharded_rows_exchanges_batches_and_makes_the_same_draws():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, DIM)).astype(np.float32)
    data = {"X": X, "y": (X[:, 0] > 0).astype(int)}
    devices = jax.local_devices()
    assert len(devices) == 2
    spread = NamedSharding(Mesh(devices, ("rows",)), PartitionSpec("rows"))
    sgld = registry.get("sgld")
    kernel = sgld.build_kernel(sgld.options(batch_size=BATCH))

    @jax.jit
    def transition(data):
        target = nf.model_target(model, kwargs=data)
        state = sgld.init({"beta": jnp.zeros(DIM)}, target)
        control = Control(jnp.zeros(DIM), jnp.zeros(DIM))
        params = {"step_size": 0.1, "inverse_mass_matrix": 1e-4, "control": control}
        new, _ = kernel(jax.random.key(0), state, target, num_steps=20, **params)
        return new.position["beta"]

    sharded = {k: jax.device_put(v, spread) for k, v in data.items()}
    program = transition.lower(sharded).compile()
    memory = program.memory_analysis()
    # a device holds half of the rows, and makes no copy of them
    row_bytes = 4 * (DIM + 1)
    assert memory.argument_size_in_bytes == N // 2 * row_bytes
    assert memory.temp_size_in_bytes < N // 4 * row_bytes
    exchanged = re.findall(
        r"= (.*) (?:all-reduce|all-gather|all-to-all|collective-permute)\(",
        program.as_text(),
    )
    sizes = [int(n) for line in exchanged for n in re.findall(r"[a-z]\d+\[(\d+)", line)]
    assert sizes
    assert max(sizes) <= BATCH
    np.testing.assert_allclose(program(sharded), transition(data), rtol=1e-5)
