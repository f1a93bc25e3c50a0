"""Owners whose data have one structure are one log density of their data."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import nutfree as nf
from nutfree.errors import InvalidData
from nutfree.frontends.numpyro import make_shards, plan_of
from nutfree.kernels.federated import fald
from nutfree.target import Target


def model(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        X, y = numpyro.subsample(X, event_dim=1), numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Bernoulli(logits=X @ beta), obs=y)


def centred(X, y):
    """Uses the mean of all rows, which rows that are filled up would change."""
    return model(X - X.mean(axis=0), y)


def owners_of(*sizes):
    rng = np.random.default_rng(0)
    return [
        {
            "X": rng.normal(size=(n, 2)).astype(np.float32),
            "y": (rng.uniform(size=n) < 0.5).astype(int),
        }
        for n in sizes
    ]


def shards_of(model, owners):
    federated = nf.federated(model)
    return make_shards(federated, plan_of(federated, owners), owners)


def test_owners_of_unequal_sizes_have_the_log_densities_of_their_own_models():
    owners = owners_of(7, 12, 5)
    shards = shards_of(model, owners)
    assert shards.alike is not None
    position = {"beta": jnp.asarray([0.4, -1.1])}

    def own(owner):
        logits = owner["X"] @ position["beta"]
        prior = dist.Normal(0, 1).log_prob(position["beta"]).sum()
        rows = dist.Bernoulli(logits=logits).log_prob(jnp.asarray(owner["y"]))
        return prior / 3 + rows.sum(), rows

    for shard, owner in zip(shards, owners):
        expected, rows = own(owner)
        assert shard(position) == pytest.approx(float(expected), rel=1e-5)
        assert shard.minibatch.num_data == len(owner["y"])
        found = shard.minibatch.terms(position, jnp.asarray([4, 1]))[1]
        np.testing.assert_allclose(found, rows[jnp.asarray([4, 1])], rtol=1e-5)


def test_a_model_that_uses_all_rows_at_once_keeps_each_owner_apart():
    owners = owners_of(7, 12, 5)
    shards = shards_of(centred, owners)
    assert shards.alike is None
    # the same where no row is missing, and then nothing is filled up
    assert shards_of(centred, owners_of(6, 6)).alike is not None


def test_the_program_of_many_owners_is_no_larger_than_that_of_few():
    """Eight owners were compiled in three times the CPU of two."""

    def program(count):
        shards = shards_of(model, owners_of(*range(30, 30 + count)))
        position = {"beta": jnp.zeros(2)}
        target = Target(lambda x: 0.0, position=position, shards=shards)
        warm = fald.SPEC.warmup()
        kernel = fald.SPEC.build_kernel()

        def run(key):
            adapt = warm.init(key, position, target, 0)
            state = fald.SPEC.init(adapt.position, target)
            return kernel(key, state, target, **adapt.params)

        return str(jax.make_jaxpr(run)(jax.random.key(0))).count(" = ")

    assert program(12) == program(3)


def test_an_owner_without_rows_is_refused_by_name():
    with pytest.raises(InvalidData, match=r"Owner 1 has no rows: its 'X'"):
        nf.model_target(nf.federated(model), (owners_of(4, 0, 5),))


def with_effects(number, X, y):
    """A level of all owners, and an effect of each, of which an owner knows its own."""
    level = numpyro.sample("level", dist.Normal(0, 2))
    effects = numpyro.sample("effects", dist.Normal(0, 1).expand([3]).to_event(1))
    with numpyro.plate("data", X.shape[0]):
        y = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(level + effects[number], 1), obs=y)


@pytest.mark.parametrize("as_int", [True, False])
def test_owners_whose_numbers_differ_are_alike(as_int):
    owners = [
        owner | {"number": s if as_int else np.asarray([s])}
        for s, owner in enumerate(owners_of(7, 12, 5))
    ]

    def used(number, X, y):
        return with_effects(number if as_int else number[0], X, y)

    shards = shards_of(used, owners)
    assert shards.alike is not None
    position = {"level": jnp.asarray(0.3), "effects": jnp.asarray([0.1, -0.4, 0.9])}
    prior = dist.Normal(0, 1).log_prob(position["effects"]).sum()
    prior += dist.Normal(0, 2).log_prob(position["level"])
    for s, (shard, owner) in enumerate(zip(shards, owners)):
        mean = position["level"] + position["effects"][s]
        rows = dist.Normal(mean, 1).log_prob(jnp.asarray(owner["y"]))
        expected = prior / 3 + rows.sum()
        assert float(shard(position)) == pytest.approx(float(expected), rel=1e-5)


def test_numbers_that_shape_the_model_keep_each_owner_apart():
    def shaped(number, X, y):
        numpyro.sample("z", dist.Normal(0, 1).expand([2]).to_event(1))
        with_effects(0, X[:, :number], y)

    owners = [o | {"number": s + 1} for s, o in enumerate(owners_of(6, 6))]
    assert shards_of(shaped, owners).alike is None
