"""Forty Gaussians: a synthetic target whose modes and their weights are known.

Forty normal components with means uniform on [-40, 40]^d. Equal weights and scales
(softplus(1), about 1.31) are the usual form. That form flatters a sampler that finds
modes but cannot weigh them, so `unequal=True` draws the weights from a Dirichlet(1)
and the scales log-uniformly between 0.8 and 1.25.

Source: Midgley et al. (2023), arXiv:2208.01893, in d = 2, synthetic.
Model: the latent `x` has a wide normal prior, which a factor divides out again: the
posterior is exactly the mixture whatever `prior_scale` is, while a kernel that starts
from prior draws learns nothing of the modes.
For NUTS: impossible; it stays in the mode where it starts.
Family: multiscale; chain of log-concave; ensemble score. Any number of dimensions.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.nn import logsumexp
from scipy.special import softmax


def model(means, scales, weights, prior_scale=25.0):
    prior = dist.Normal(0, prior_scale).expand(means.shape[1:]).to_event(1)
    x = numpyro.sample("x", prior)
    components = dist.Normal(means, scales[:, None]).to_event(1)
    log_mixture = logsumexp(jnp.log(weights) + components.log_prob(x))
    numpyro.factor("mixture", log_mixture - prior.log_prob(x))


def data(
    dim: int = 2, num_components: int = 40, unequal: bool = False, seed: int = 0
) -> dict[str, np.ndarray]:
    """Means (num_components, dim), scales and weights (num_components,)."""
    rng = np.random.default_rng(seed)
    means = rng.uniform(-40, 40, size=(num_components, dim))
    if unequal:
        scales = np.exp(rng.uniform(np.log(0.8), np.log(1.25), size=num_components))
        weights = rng.dirichlet(np.ones(num_components))
    else:
        scales = np.full(num_components, np.log1p(np.exp(1)))
        weights = np.full(num_components, 1 / num_components)
    return {"means": means, "scales": scales, "weights": weights}


def exact_draws(seed: int, num_draws: int, /, **options) -> np.ndarray:
    """Independent draws of ``x``, one a row; ``options`` are those of `data`, whose
    own ``seed`` is that of the target."""
    target = data(**options)
    rng = np.random.default_rng(seed)
    mode = rng.choice(len(target["weights"]), size=num_draws, p=target["weights"])
    means, scales = target["means"][mode], target["scales"][mode, None]
    return means + scales * rng.standard_normal(means.shape)


def responsibilities(draws, means, scales, weights) -> np.ndarray:
    """Probability that each component made each of ``draws`` (num_draws, dim)."""
    draws = np.asarray(draws, dtype=float)
    # |x - mean|^2 expanded: no array of num_draws x num_components x dim
    squares = (
        (draws**2).sum(1)[:, None] - 2 * draws @ means.T + (means**2).sum(1)[None, :]
    )
    log_density = -squares / (2 * scales**2) - means.shape[1] * np.log(scales)
    return softmax(np.log(weights) + log_density, axis=1)


def mode_weights(draws, means, scales, weights) -> np.ndarray:
    """The share of ``draws`` (num_draws, dim) that belongs to each component.

    A draw is divided among the components by their posterior probability of having
    made it, so that for draws from the mixture the expected answer is ``weights``, even
    where components overlap.
    """
    return responsibilities(draws, means, scales, weights).mean(axis=0)
