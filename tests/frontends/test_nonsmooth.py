"""Non-smooth terms are found at a model's sites, and declared in it."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

import nutfree as nf
from nutfree.frontends.numpyro import model_target
from nutfree.numerics.proximal import GroupNorm, Hinge, LaplaceTerm, OwnTerm

Y = jnp.array([0.3, -1.0, 2.5, 0.9])
MASK = jnp.array([True, False, True, True])


def level():
    return numpyro.sample("x", dist.Normal(0, 3).expand([4]).to_event(1))


def total_variation():
    nf.nonsmooth("tv", jnp.diff(level()), 0.5)


def groups():
    nf.nonsmooth("groups", level().reshape(2, 2), jnp.array([0.5, 2.0]), norm="group")


def own_term():
    nf.nonsmooth("mine", level(), norm=Hinge(0.2, 1.0, 3.0))


def picture():
    x = numpyro.sample("x", dist.Normal(0, 3).expand([2, 2]).to_event(2))
    nf.nonsmooth("tv", x, 0.5, norm="tv")


def own_functions():
    def prox(x, step):
        return jnp.sign(x) * jnp.maximum(jnp.abs(x) - step, 0)

    nf.nonsmooth("mine", level(), norm=lambda x: jnp.sum(jnp.abs(x)), prox=prox)


def likelihood():
    b = numpyro.sample("b", dist.HalfNormal())
    numpyro.sample("y", dist.Laplace(level(), b).to_event(1), obs=Y)


def quantile():
    fn = dist.AsymmetricLaplaceQuantile(level(), 0.7, 0.9)
    numpyro.sample("y", fn.to_event(1), obs=Y)


def masked_likelihood():
    with numpyro.plate("rows", 4), handlers.mask(mask=MASK), handlers.scale(scale=3.0):
        numpyro.sample("y", dist.Laplace(level_of_rows(), 0.4), obs=Y)


def level_of_rows():
    return jnp.cumsum(numpyro.sample("z", dist.Normal(0, 1).mask(False)) + jnp.ones(4))


def asymmetric_prior():
    numpyro.sample("x", dist.AsymmetricLaplace(1.0, 0.5, 2.0).expand([3]).to_event(1))


def scaled_prior():
    with handlers.scale(scale=0.5), numpyro.plate("rows", 3):
        numpyro.sample("x", dist.Laplace(0, 0.5).mask(MASK[:3]))


def latent_scale():
    tau = numpyro.sample("tau", dist.HalfCauchy())
    numpyro.sample("x", dist.Laplace(0, tau).expand([3]).to_event(1))


def several():
    x = level()
    nf.nonsmooth("sparse", x, 0.3)
    nf.nonsmooth("tv", jnp.diff(x), 0.5)


FOUND = {
    total_variation: {"tv": LaplaceTerm},
    groups: {"groups": GroupNorm},
    own_term: {"mine": Hinge},
    own_functions: {"mine": OwnTerm},
    picture: {"tv": GroupNorm},
    likelihood: {"y": Hinge},
    quantile: {"y": Hinge},
    masked_likelihood: {"y": Hinge},
    asymmetric_prior: {"x": Hinge},
    scaled_prior: {"x": Hinge},
    latent_scale: {"x": LaplaceTerm},
    several: {"sparse": LaplaceTerm, "tv": LaplaceTerm},
}


@pytest.mark.parametrize("model", FOUND, ids=lambda m: m.__name__)
def test_terms_are_found_and_what_is_left_is_smooth(model):
    """Without its terms, the log density has one gradient on both sides of a kink."""
    target = model_target(model)
    split = target.split
    flat, unravel = jax.flatten_util.ravel_pytree(target.position)

    @jax.jit
    @jax.vmap
    def parts(z):
        smooth, parts = split.parts(split.constrain(unravel(z)))
        g = sum(p.term.value(p.x) for p in parts.values())
        smooth = smooth + split.log_det(unravel(z))
        return target(unravel(z)), smooth, g

    _, nonsmooth = split.parts(split.constrain(target.position))
    assert {k: type(p.term) for k, p in nonsmooth.items()} == FOUND[model]
    whole, rest, g = parts(flat + jnp.linspace(-4, 4, 201)[:, None])
    np.testing.assert_allclose(whole, rest - g, rtol=1e-4)

    def bend(values):
        """Largest second difference: 1 / n^2 of n values, or 1 / n by kinks."""
        return np.max(np.abs(np.diff(values, 2)))

    assert bend(rest) < 0.3 * bend(rest[::2]) + 1e-4


def test_a_declared_term_is_a_factor_for_numpyro():
    def plain():
        numpyro.factor("tv", -jnp.sum(jnp.abs(jnp.diff(level()))) / 0.5)

    position = {"x": Y}
    ours, theirs = model_target(total_variation), model_target(plain)
    np.testing.assert_allclose(ours(position), theirs(position), rtol=1e-6)
    with pytest.raises(nf.MissingCapability, match=r"nutfree\.nonsmooth"):
        nf.kernel("marbmumla", plain).init(jax.random.key(0), 0, None, (), {})


class NoProx:
    def value(self, x):
        return jnp.sum(jnp.abs(x))


class PerElement(NoProx):
    def value(self, x):
        return jnp.abs(x)

    def prox(self, x, step):
        return x


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"norm": "l2"}, "Write one of 'l1', 'group'"),
        ({"norm": NoProx()}, "without 'prox'"),
        ({"norm": jnp.sum}, "no 'prox'. Pass prox="),
        ({"norm": "nuclear"}, r"shape \(3,\). Pass one of at least 2 axes"),
        ({"norm": PerElement()}, "return the sum"),
        ({"scale": jnp.ones(4)}, r"shape \(4,\) for norms of shape \(3,\)"),
    ],
)
def test_a_term_that_is_none_is_refused_with_what_to_write(settings, message):
    def model():
        nf.nonsmooth("tv", jnp.diff(level()), **settings)

    with pytest.raises(nf.InvalidData, match=message):
        model_target(model)
