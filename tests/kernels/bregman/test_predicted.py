"""Unadjusted kernels: the bias that they predict is the one that they have."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

import nutfree as nf
from nutfree.kernels.bregman.predicted import (
    EULER,
    no_covariances,
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


@pytest.mark.parametrize("stages", [None, 2, 8])
def test_a_gaussian_variance_errs_as_its_recursion_says(stages):
    """From exact draws; Euler's 1 / (1 - gamma / 2), A and B of the recursion."""
    of = EULER if stages is None else scheme(*weak_error(stages))
    x = np.random.default_rng(0).normal(size=(4000, 3))

    def add(found, x):
        none = jnp.zeros(2)
        return found.plus(x, jnp.concatenate([jnp.sum(x * x)[None], none])), None

    start = no_covariances(jnp.zeros(3))
    found, _ = jax.jit(lambda x: jax.lax.scan(add, start, x))(jnp.asarray(x))
    gamma, (a, b, _) = 0.02, (0, 0, 0) if stages is None else weak_error(stages)
    forget, stir = 1 - gamma + a * gamma**2, 1 - b * gamma
    expected = 2 * gamma * stir**2 / (1 - forget**2) - 1
    # 12,000 squares know their kurtosis to 8 %, and next orders are gamma / 4
    share = float(prediction(found, of).share)
    assert share * gamma == pytest.approx(expected, rel=0.15, abs=1e-5)


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
