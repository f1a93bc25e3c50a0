"""A posterior that is written once, as a smooth part and terms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.distributions import constraints

import nutfree as nf
from nutfree.numerics.terms import At, Box, LaplaceTerm, OwnTerm

Y = jnp.array([1.0, -0.5, 3.0])


def smooth(x):
    fit = -0.5 * jnp.sum((Y - x["level"]) ** 2) - 3 * jnp.log(x["scale"])
    return fit - x["scale"]


def terms(x):
    return {
        "level": LaplaceTerm(0.0, x["scale"]),
        "steps": At(LaplaceTerm(0.0, 0.5), jnp.diff(x["level"])),
    }


START = {"level": Y, "scale": 0.7}
SUPPORTS = {"scale": constraints.positive}


def test_density_and_split_are_of_the_same_two_functions():
    target = nf.composite(smooth, terms, START, supports=SUPPORTS)
    scale, z = 1.3, {"level": Y + 0.1, "scale": jnp.log(1.3)}
    x = {"level": Y + 0.1, "scale": scale}
    g = jnp.sum(jnp.abs(x["level"])) / scale + jnp.sum(jnp.abs(jnp.diff(Y))) / 0.5
    np.testing.assert_allclose(target(z), smooth(x) - g + jnp.log(scale), rtol=1e-6)
    np.testing.assert_allclose(target.constrain(z)["scale"], scale, rtol=1e-6)
    np.testing.assert_allclose(target.unconstrain(x)["scale"], z["scale"], rtol=1e-6)
    np.testing.assert_allclose(target.position["scale"], np.log(0.7), rtol=1e-6)


def test_a_posterior_of_one_array_needs_no_name():
    target = nf.composite(
        lambda x: -0.5 * jnp.sum((x - Y) ** 2), LaplaceTerm(0.0, 0.5), jnp.zeros(3)
    )
    expected = -0.5 * jnp.sum((1 - Y) ** 2) - 6
    np.testing.assert_allclose(target(jnp.ones(3)), expected, rtol=1e-6)
    start = jnp.zeros(3)
    algorithm = nf.marbmumla(target, step_size=0.5)
    state, _ = algorithm.step(jax.random.key(0), algorithm.init(start))
    assert state.position.shape == (3,)


def quadratic(x):
    return -0.5 * jnp.sum(x**2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((quadratic, Box(2.0, 3.0), Y), "outside of the domain of the term of 'x'"),
        ((lambda x: jnp.log(x[1]), Box(-9.0, 9.0), Y), "smooth part is nan at the"),
        ((quadratic, {"y": Box(-9.0, 9.0)}, Y), "'y', which is no site: there are x"),
        ((quadratic, OwnTerm(quadratic, lambda x, s: x), Y), "is not convex"),
        ((smooth, terms, START, {"scales": constraints.positive}), "has 'scales'"),
        (
            (smooth, terms, START | {"scale": -1.0}, SUPPORTS),
            "start of 'scale' is outside of its support",
        ),
    ],
)
def test_what_makes_no_posterior_is_refused(given, message):
    *given, supports = given if len(given) == 4 else (*given, None)
    with pytest.raises(nf.InvalidData, match=message):
        nf.composite(*given, supports=supports)


@pytest.mark.slow
def test_kernels_are_compared_on_a_target():
    """Both means of the location within five standard errors of 200 effective draws."""
    target = nf.composite(smooth, terms, START, supports=SUPPORTS)
    found = nf.compare(
        target,
        kernels=["nuts", "marbmumla"],
        num_warmup=300,
        num_samples=500,
        progress_bar=False,
    )
    assert not found.errors
    nuts, ours = (tree["posterior"]["level"] for tree in found.trees.values())
    apart = (nuts.mean(("chain", "draw")) - ours.mean(("chain", "draw"))) / nuts.std(
        ("chain", "draw")
    )
    assert np.abs(apart).max() < 5 * np.sqrt(2 / 200)
    assert (ours.shape, float(found.trees["nuts"]["posterior"]["scale"].min()) > 0) == (
        (4, 500, 3),
        True,
    )
