"""Unadjusted kernels: the bias that they predict is the one that they have."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.special import gamma

import nutfree as nf
from nutfree.kernels.bregman.predicted import (
    EULER,
    NUM_BATCHES,
    no_covariances,
    plus,
    prediction,
    scheme,
)
from nutfree.numerics.skrock import weak_error

SCALES = jnp.logspace(-1, 1, 10)


def laplace():
    numpyro.sample("x", dist.Laplace(0.0, SCALES).to_event(1))


def lasso():
    x = numpyro.sample("x", dist.Laplace(0.0, 1.0).expand([10]).to_event(1))
    numpyro.sample("y", dist.Normal(x, 1.0).to_event(1), obs=jnp.ones(10))


def exact_moments(model):
    """Mean and variance of a coordinate in units of its scale, by quadrature."""
    x = np.linspace(-40, 40, 400_001)
    density = np.exp(-np.abs(x) - (model is lasso) * 0.5 * (x - 1) ** 2)
    mean = np.sum(x * density) / np.sum(density)
    return mean, np.sum((x - mean) ** 2 * density) / np.sum(density)


@jax.jit
def measured(x, scores):
    """From draws x, `(n, d)`, of variance 1, and the squared norms of scores there."""

    def add(found, at):
        i, x, score = at
        numbers = jnp.zeros(3).at[0].set(score)
        return plus(found, i // (len(scores) // NUM_BATCHES), x, numbers), None

    start = no_covariances(jnp.zeros(x.shape[1]))
    return jax.lax.scan(add, start, (jnp.arange(len(x)), x, scores))[0]


def test_nothing_is_predicted_that_the_draws_do_not_tell():
    """Of x^4 / 4 the terms are -0.91 and 1 for each unit of gamma, and 300 draws know
    the first to some 0.3; of a Laplace law it is 0, and 300 draws know the other, 1, to
    an eighth."""
    rng = np.random.default_rng(0)
    x = np.sqrt(2 * np.sqrt(rng.gamma(0.25, size=300))) * rng.choice([-1, 1], 300)
    variance = 2 * gamma(0.75) / gamma(0.25)
    quartic = prediction(measured(x[:, None] / variance**0.5, variance * x**6), EULER)
    assert np.isnan(quartic.if_known(0.1))
    assert np.isfinite(quartic(0.1))
    x = rng.laplace(size=(300, 1)) / 2**0.5
    laplace = prediction(measured(x, np.full(300, 2.0)), EULER)
    assert laplace.if_known(0.1) == pytest.approx(0.1, rel=0.3)


@pytest.mark.parametrize("stages", [None, 2, 8])
def test_a_gaussian_variance_errs_as_its_recursion_says(stages):
    """From exact draws; Euler's 1 / (1 - gamma / 2), A and B of the recursion."""
    of = EULER if stages is None else scheme(*weak_error(stages))
    x = np.random.default_rng(0).normal(size=(4000, 3))

    found = measured(x, np.sum(x * x, axis=1))
    step, (a, b, _) = 0.02, (0, 0, 0) if stages is None else weak_error(stages)
    forget, stir = 1 - step + a * step**2, 1 - b * step
    expected = 2 * step * stir**2 / (1 - forget**2) - 1
    # 12,000 squares know their kurtosis to 8 %, and next orders are gamma / 4
    share = float(prediction(found, of).share)
    assert share * step == pytest.approx(expected, rel=0.15, abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("model", [laplace, lasso])
@pytest.mark.parametrize("name", ["myula", "rbmumla", "skrock"])
def test_predicted_error_of_variances_is_the_measured_one(name, model):
    """Within 30 %, or 1 % of the variance, beside three standard errors of what 64
    chains of 500 draws measure."""
    tree = nf.sample(
        nf.kernel(name, model),
        num_warmup=300,
        num_samples=500,
        num_chains=64,
        progress_bar=False,
    )
    x = np.asarray(tree["posterior"]["x"], float)
    scale = np.asarray(SCALES) if model is laplace else 1.0
    mean, variance = exact_moments(model)
    by_chain = np.mean((x / scale - mean) ** 2, axis=(1, 2)) / variance - 1
    measured, noise = by_chain.mean(), by_chain.std() / 8
    stats = tree["sample_stats"]
    predicted = float(stats["predicted_inflation"].mean())
    print(
        f"{name} {model.__name__}: predicted {predicted:+.4f}, measured "
        f"{measured:+.4f} ± {noise:.4f}, gradients {stats['num_grad_evals'].mean():.1f}"
    )
    assert abs(predicted - measured) < max(0.3 * abs(measured), 0.01) + 3 * noise
