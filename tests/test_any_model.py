"""A user's model that no kernel was written for, under every kernel there is."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import nutfree as nf
from nutfree.frontends.numpyro import model_target
from nutfree.target import PARTS
from tests.targets import SPECS, kernel_param


def school_years(school, hours, passed=None):
    """Nested plates, a constrained vector, a bound that moves, a factor."""
    shares = numpyro.sample("shares", dist.Dirichlet(2.0 * jnp.ones(3)))
    spread = numpyro.sample("spread", dist.LogNormal(0.0, 0.5))
    ceiling = numpyro.sample("ceiling", dist.Uniform(0.0, 1.0 + spread))
    with numpyro.plate("years", 2, dim=-2), numpyro.plate("schools", 5, dim=-1):
        level = numpyro.sample("level", dist.Normal(0.0, spread))
    numpyro.deterministic("best", jnp.max(level))
    numpyro.factor("few", -2.0 * jnp.sum(shares**2))
    logits = level[0, school] + level[1, school] * hours + ceiling * shares[0]
    with numpyro.plate("pupils", hours.shape[0]):
        numpyro.sample("passed", dist.Bernoulli(logits=logits), obs=passed)


def school_data():
    rng = np.random.default_rng(0)
    return {
        "school": rng.integers(0, 5, 40),
        "hours": rng.normal(size=40).astype(np.float32),
        "passed": rng.integers(0, 2, 40),
    }


#: The quick suite runs a walker, and all that the model lacks a part for.
QUICK = {"mala"}
#: Parts that the model has.
FOUND = {"prior", "split"}


def _missing(spec) -> list[str]:
    return sorted(set(spec.needs) - FOUND)


def test_the_parts_of_the_model_are_found():
    target = model_target(school_years, (), school_data())
    assert {part for part in PARTS if getattr(target, part) is not None} == FOUND


@pytest.mark.parametrize(
    "name",
    [kernel_param(n, quick=n in QUICK or bool(_missing(s))) for n, s in SPECS.items()],
)
def test_it_runs_or_the_error_says_what_to_write(name):
    spec = SPECS[name]
    mcmc = MCMC(
        nf.kernel(name, school_years), num_warmup=10, num_samples=10, progress_bar=False
    )
    gaussian_prior_only = name == "blackjax.elliptical_slice"
    if _missing(spec) or gaussian_prior_only:
        with pytest.raises(nf.MissingCapability) as caught:
            mcmc.run(jax.random.key(0), **school_data())
        message = str(caught.value)
        assert name in message
        assert "numpyro" in message or "nutfree" in message or "Normal" in message
        return
    mcmc.run(jax.random.key(0), **school_data())
    samples = mcmc.get_samples()
    assert {k: v.shape for k, v in samples.items()} == {
        "shares": (10, 3),
        "spread": (10,),
        "ceiling": (10,),
        "level": (10, 2, 5),
        "best": (10,),
    }
    assert all(np.all(np.isfinite(v)) for v in samples.values())
    np.testing.assert_allclose(samples["shares"].sum(1), 1.0, rtol=1e-4)
    assert np.all(samples["ceiling"] <= 1.0 + samples["spread"])
    np.testing.assert_allclose(samples["best"], samples["level"].max((1, 2)), rtol=1e-5)
