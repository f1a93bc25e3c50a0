"""Discrete sites that are declared so are summed out of the density."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import nutfree as nf
from nutfree.frontends.federated import federated

pytest.importorskip("funsor")
Y = np.array([-3.1, -2.8, -3.2, 2.9, 3.3, 3.0, 2.5], np.float32)
SUMMED = {"enumerate": "parallel"}


def components():
    weight = numpyro.sample("weight", dist.Beta(2, 2))
    loc = numpyro.sample("loc", dist.Normal(np.array([-3.0, 3.0]), 0.5).to_event(1))
    numpyro.deterministic("gap", loc[1] - loc[0])
    return weight, loc


def labelled(y, infer=SUMMED):
    weight, loc = components()
    with numpyro.plate("rows", len(y)):
        label = numpyro.sample("label", dist.Bernoulli(weight), infer=infer)
        numpyro.sample("y", dist.Normal(loc[label], 1.0), obs=y)


def by_hand(y):
    weight, loc = components()
    shares = dist.Categorical(jnp.stack([1 - weight, weight]))
    with numpyro.plate("rows", len(y)):
        numpyro.sample(
            "y", dist.MixtureSameFamily(shares, dist.Normal(loc, 1.0)), obs=y
        )


def assert_close(one, other, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, other)


def test_the_density_is_that_of_the_sum_written_by_hand():
    found, wanted = (nf.model_target(model, (Y,)) for model in (labelled, by_hand))
    assert found.position.keys() == wanted.position.keys()
    for seed in range(2):
        position = wanted.prior.sample(jax.random.key(seed))
        one, other = (jax.jit(jax.value_and_grad(t))(position) for t in (found, wanted))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5), one, other
        )
        priors = (t.prior.logdensity(position) for t in (found, wanted))
        np.testing.assert_allclose(*priors, rtol=1e-5)
        values = found.constrain(position)
        assert values.keys() == {"weight", "loc", "gap"}
        back = found.unconstrain(values)
        assert_close(back, position, atol=1e-5)


def undeclared(y):
    labelled(y, {})


def unbounded(y):
    numpyro.sample("n", dist.Poisson(3.0), infer=SUMMED)


def shared_by_owners(y):
    side = numpyro.sample("side", dist.Bernoulli(0.5), infer=SUMMED)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(side, 1.0), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "said"),
    [
        (undeclared, Y, "infer={'enumerate': 'parallel'}"),
        (unbounded, Y, "Mixture"),
        (federated(shared_by_owners), [{"y": Y}, {"y": Y}], "Mixture"),
    ],
)
def test_other_discrete_sites_are_refused_with_the_way_that_works(model, data, said):
    with pytest.raises(nf.UnsupportedModel) as refused:
        nf.model_target(model, (data,))
    assert said in str(refused.value)
    assert "DiscreteGibbs" in str(refused.value)


def test_kernels_that_need_single_rows_or_terms_say_why_there_are_none():
    for name in ("sgld", "myula"):
        with pytest.raises(nf.MissingCapability, match="'label' is summed out"):
            nf.kernel(name, labelled).target((Y,))


@pytest.mark.slow
def test_draws_are_those_of_numpyros_nuts():
    """Four standard errors of 4,000 draws, of which a tenth is effective, or so."""
    settings = {"num_warmup": 500, "num_samples": 1000, "progress_bar": False}
    trees = [
        nf.sample(nf.kernel(name, labelled), Y, **settings) for name in ("mala", "nuts")
    ]
    for site in ("weight", "gap"):
        one, other = (tree["posterior"][site].values for tree in trees)
        assert abs(one.mean() - other.mean()) < 4 * one.std() * np.sqrt(2 / 400)
    kernel = nf.kernel("mala", labelled)
    with pytest.raises(nf.InvalidOption, match="'label', which is summed out"):
        nf.sample(kernel, Y, **settings, log_likelihood=True)
