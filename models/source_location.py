"""Where a source is: eight sensors downwind, and the equation that carries its plume.

A source of unknown strength somewhere in a square releases what wind and diffusion
carry to sensors on two sides, where it is measured with noise. The steady
concentration u solves

    v . grad u - kappa Laplace u + decay u = strength * source(place),   u = 0 outside,

by finite volumes on a grid, with SciPy's sparse LU. JAX cannot see into it: the
likelihood is a black box, of many places at once.

Data: simulated at the place (0.35, 0.6) and the strength 1.5, seed 0.
For NUTS: impossible, there is no gradient.
Family: ensemble, blackjax.rmh. 3 dimensions.
"""

from functools import cache

import numpy as np
import numpyro
import numpyro.distributions as dist
from scipy.sparse import diags_array, eye_array, kron
from scipy.sparse.linalg import splu

#: Cells along a side of the unit square.
CELLS = 40
WIND, DIFFUSION, DECAY = (1.0, 0.3), 0.05, 0.5
#: Radius of the source.
RADIUS = 0.05
#: Standard deviation of a measurement.
NOISE = 0.02


@cache
def _solver():
    """The LU factors of the equation, and the centres of the cells, `(cells, 2)`."""
    h = 1 / CELLS
    one = eye_array(CELLS)

    def along(speed):
        """Upwind differences and diffusion along one axis."""
        lower = np.full(CELLS - 1, -speed / h - DIFFUSION / h**2)
        middle = np.full(CELLS, speed / h + 2 * DIFFUSION / h**2)
        upper = np.full(CELLS - 1, -DIFFUSION / h**2)
        return diags_array([lower, middle, upper], offsets=[-1, 0, 1])

    operator = kron(along(WIND[0]), one) + kron(one, along(WIND[1]))
    operator = operator + DECAY * eye_array(CELLS**2)
    axis = (np.arange(CELLS) + 0.5) * h
    cells = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    return splu(operator.tocsc()), cells


def _sensors() -> np.ndarray:
    along = np.linspace(0.2, 0.9, 4)
    right = np.stack([np.full(4, 0.9), along], 1)
    return np.concatenate([right, np.stack([along, np.full(4, 0.9)], 1)])


def signal(place) -> np.ndarray:
    """Concentrations at the sensors from sources of unit strength.

    Args:
        place: `(n, 2)`.

    Returns:
        `(n, 8)`.
    """
    factors, cells = _solver()
    squares = ((cells[:, None] - np.asarray(place, float)) ** 2).sum(-1)
    source = np.exp(-0.5 * squares / RADIUS**2) / (2 * np.pi * RADIUS**2)
    u = factors.solve(source)
    at = (_sensors() * CELLS).astype(int)
    return u[at[:, 0] * CELLS + at[:, 1]].T


def log_likelihood(position) -> np.ndarray:
    """Of places, strengths and measurements, each with a first axis of `n`."""
    mean = position["strength"][:, None] * signal(position["place"])
    return -0.5 * np.sum(((position["y"] - mean) / NOISE) ** 2, axis=1)


@cache
def black_box():
    """The likelihood as a kernel may call it; reading the data needs no nutfree."""
    import nutfree as nf

    return nf.blackbox(log_likelihood, batch=256)


def model(y):
    place = numpyro.sample("place", dist.Uniform(0, 1).expand([2]).to_event(1))
    strength = numpyro.sample("strength", dist.LogNormal(0, 1))
    position = {"place": place, "strength": strength, "y": y}
    numpyro.factor("likelihood", black_box()(position))


def data() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    mean = 1.5 * signal(np.array([[0.35, 0.6]]))[0]
    return {"y": (mean + NOISE * rng.standard_normal(len(mean))).astype(np.float32)}
