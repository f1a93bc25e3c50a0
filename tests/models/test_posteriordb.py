"""Each rewritten Stan program has the posterior that its reference draws have."""

import jax
import numpy as np
import pytest
from numpyro.diagnostics import effective_sample_size, gelman_rubin
from numpyro.infer import MCMC, NUTS

from models import posteriordb

# What NUTS needs to be right about the two that its defaults get wrong
OPTIONS = {
    "gp_pois_regr": {"target_accept_prob": 0.98},
    "kidscore_interaction": {"dense_mass": True},
}


def nuts(posterior, **options):
    mcmc = MCMC(
        NUTS(posterior.model, **{"target_accept_prob": 0.9, **options}),
        num_warmup=1000,
        num_samples=1000,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), **posterior.data())
    return jax.device_get(mcmc.get_samples(group_by_chain=True))


def standard_errors_apart(a, b):
    """Difference of two means of (chains, draws, ...) in Monte-Carlo errors."""
    a, b = np.asarray(a, float), np.asarray(b, float)
    squared_errors = [x.var((0, 1)) / effective_sample_size(x) for x in (a, b)]
    return (a.mean((0, 1)) - b.mean((0, 1))) / np.sqrt(sum(squared_errors))


@pytest.mark.slow
@pytest.mark.parametrize("name", posteriordb.names())
def test_nuts_agrees_with_reference_draws_in_means_and_variances(name):
    # 134 comparisons at 4 standard errors: by chance, one fails in 120 seeds of the lot
    posterior = posteriordb.load(name)
    with jax.enable_x64(True):
        draws = nuts(posterior, **OPTIONS.get(name, {}))
    for site, reference in posterior.reference().items():
        assert draws[site].shape[2:] == reference.shape[2:]
        assert np.all(gelman_rubin(draws[site]) < 1.02)
        centre = reference.mean((0, 1), dtype=float)
        apart = standard_errors_apart(draws[site], reference)
        apart_squares = standard_errors_apart(
            (draws[site] - centre) ** 2, (reference - centre) ** 2
        )
        print(f"{name} {site}: {np.round(apart, 2)} {np.round(apart_squares, 2)}")
        assert np.all(np.abs(apart) < 4), site
        assert np.all(np.abs(apart_squares) < 4), site


@pytest.mark.parametrize("name", posteriordb.names())
def test_reference_draws_have_the_shape_of_their_site(name):
    reference = posteriordb.load(name).reference()
    assert reference
    for draws in reference.values():
        assert draws.shape[:2] == (10, 1000)
        assert np.isfinite(draws).all()
