"""SK-ROCK, a stabilised explicit integrator for stiff Langevin dynamics.

Reference: Abdulle, Almuslimani and Vilmart, SIAM/ASA J. Uncertainty Quantification 6
(2018). One step of dx = F(x) dt + noise, with Q the noise of the whole step, is

    K_0 = x,  K_1 = x + mu_1 h F(x + nu_1 Q) + kappa_1 Q,
    K_j = mu_j h F(K_(j-1)) + nu_j K_(j-1) + kappa_j K_(j-2),   x' = K_s,

of Chebyshev polynomials of the first kind T: with w0 = 1 + eta/s^2 and
w1 = T_s(w0)/T_s'(w0), mu_1 = w1/w0, nu_1 = s w1/2, kappa_1 = s w1/w0,
mu_j = 2 w1 T_(j-1)(w0)/T_j(w0), nu_j = 2 w0 T_(j-1)(w0)/T_j(w0), kappa_j = 1 - nu_j.
Weak order one; s evaluations of F reach as far as s^2 of Euler-Maruyama's do.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from numpy.polynomial import chebyshev

#: Damping eta, the value of the authors.
DAMPING = 0.05


def _t(degree: int, x) -> np.ndarray:
    return chebyshev.chebval(x, [0.0] * degree + [1.0])


def _nodes(num_stages: int) -> tuple[float, float]:
    """Return w0 and w1."""
    w0 = 1.0 + DAMPING / num_stages**2
    slope = chebyshev.chebval(w0, chebyshev.chebder([0.0] * num_stages + [1.0]))
    return w0, float(_t(num_stages, w0) / slope)


def reach(num_stages: int) -> float:
    """Return how large h |lambda| may be for an eigenvalue lambda < 0 of the drift.

    It is where w0 - h |lambda| w1 = -1, about 1.93 s^2; Euler-Maruyama's is two.
    """
    w0, w1 = _nodes(num_stages)
    return (1.0 + w0) / w1


def weak_error(num_stages: int) -> tuple[float, float, float]:
    """Return a, b, c of x' = x + h F + Q + a h^2 F'F + b h F'Q + c h F''[Q, Q] + ...

    Those of the exact expansion are, on average over Q, 1/2, 1/2 and 1/4.
    """
    s, (w0, w1) = num_stages, _nodes(num_stages)
    t = [float(_t(j, w0)) for j in range(s + 1)]
    bend = chebyshev.chebval(w0, chebyshev.chebder([0.0] * s + [1.0], 2))
    # U_(s-1), the polynomial of the noise, is T_s' / s
    slope = chebyshev.chebval(w0, chebyshev.chebder([0.0] * s + [1.0], 1))
    before, noise = 0.0, s * w1 / w0
    before_c, c = 0.0, w1 / w0 * (0.5 * s * w1) ** 2 / 2
    for j in range(2, s + 1):
        ratio = t[j - 1] / t[j]
        mu, nu = 2 * w1 * ratio, 2 * w0 * ratio
        before_c, c = c, mu * noise**2 / 2 + nu * c + (1 - nu) * before_c
        before, noise = noise, nu * noise + (1 - nu) * before
    a, b = w1**2 * bend / (2 * t[s]), w1 * bend / slope + 0.5 * w1
    return float(a), float(b), c


def sk_rock(
    drift: Callable,
    x: jax.Array,
    noise: jax.Array,
    count: jax.Array | int,
    *,
    step_size: float | jax.Array,
    num_stages: int,
) -> tuple[jax.Array, jax.Array | int]:
    """Make one step.

    Args:
        drift: `(x, count) -> (F(x), count)`, threading a count of evaluations.
        x: the start.
        noise: Q, of the shape of x, with the variance of the whole step.
        count: evaluations so far.
        step_size: h.
        num_stages: s, at least one; one evaluation each.

    Returns:
        `(x', count)`.
    """
    w0, w1 = _nodes(num_stages)
    t = np.array([_t(j, w0) for j in range(num_stages + 1)])
    f, count = drift(x + 0.5 * num_stages * w1 * noise, count)
    new = x + w1 / w0 * (step_size * f + num_stages * noise)
    if num_stages == 1:
        return new, count
    ratio = jnp.asarray(t[1:-1] / t[2:], x.dtype)

    def stage(j, carry):
        old, new, count = carry
        f, count = drift(new, count)
        nu = 2.0 * w0 * ratio[j]
        step = 2.0 * w1 * ratio[j] * step_size * f
        return new, step + nu * new + (1.0 - nu) * old, count

    _, new, count = jax.lax.fori_loop(0, num_stages - 1, stage, (x, new, count))
    return new, count
