"""A centred hierarchy is seen, and warned of where the data say little of it."""

import warnings

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam

import nutfree as nf
from nutfree.frontends.hierarchy import centred_sites, funnels
from nutfree.frontends.numpyro import analyse

pytestmark = pytest.mark.usefixtures("toys")


def centred(rows):
    """Groups of `rows` observations each, whose number is what the data say."""
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    log_tau = numpyro.sample("log_tau", dist.Normal(0, 1))
    with numpyro.plate("groups", 4):
        theta = numpyro.sample("theta", dist.Normal(mu, jnp.exp(log_tau)))
    with numpyro.plate("data", rows.shape[0]):
        y = numpyro.subsample(rows, event_dim=1)
        numpyro.sample("y", dist.Normal(theta, 1.0).to_event(1), obs=y)


def test_a_scale_on_the_log_scale_is_a_scale():
    assert centred_sites(centred, (jnp.zeros((5, 4)),)) == (("theta", "log_tau"),)


@pytest.mark.parametrize(("num_rows", "log_tau", "found"), [(5, -2.0, 1), (50, 0.0, 0)])
def test_a_funnel_is_where_the_data_say_less_than_the_scale(num_rows, log_tau, found):
    """Precisions of theta: exp(-2 log_tau) of the prior, num_rows of the data."""
    args = (jnp.zeros((num_rows, 4)),)
    frontend = analyse(centred, args)
    position = {
        "mu": jnp.asarray(0.0),
        "log_tau": jnp.asarray(log_tau),
        "theta": jnp.zeros(4),
    }
    prior = frontend.prior_logdensity(args)
    pairs = (("theta", "log_tau"),)
    assert len(funnels(pairs, frontend.build(args), prior, position)) == found


@pytest.mark.parametrize("is_centred", [True, False])
def test_a_kernel_that_never_rejects_warns_of_a_funnel(is_centred):
    other = handlers.reparam(centred, config={"theta": LocScaleReparam(0)})
    kernel = nf.kernel("toy.rows", centred if is_centred else other)
    start = {"mu": 0.0, "log_tau": -2.0}
    start["theta" if is_centred else "theta_decentered"] = jnp.zeros(4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        kernel.init(jax.random.key(0), 1, start, (jnp.zeros((5, 4)),))
    assert [str(w.message)[:7] for w in said] == ["'theta'"] * is_centred
    assert all(w.filename == __file__ for w in said)


def test_a_prior_that_cannot_be_drawn_from_is_no_hindrance():
    def model():
        numpyro.sample("flat", dist.ImproperUniform(dist.constraints.real, (), ()))
        center = numpyro.sample("center", dist.Normal(0, 5))
        scale = numpyro.sample("scale", dist.HalfNormal(1))
        numpyro.sample("x", dist.Normal(center, scale).expand([8]).to_event(1))

    assert centred_sites(model, (), {}) == (("x", "scale"),)
