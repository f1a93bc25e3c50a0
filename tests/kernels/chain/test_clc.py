"""The chain of looks from its own warm-up. Tolerances are four standard errors or more.

With fixed seeds, false alarms are below 1e-3 for the file.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from nutfree.kernels.chain.clc import SPEC
from nutfree.target import Target
from tests.kernels.multiscale.test_multalmc import (
    RING,
    WEIGHTS,
    ring,
    sample,
)


def test_modes_have_their_weights():
    target = Target(ring, position={"x": jnp.zeros(2)})
    states, info, _ = sample(target, spec=SPEC, num_warmup=20, num_samples=1000)
    x = np.asarray(states.position["x"])
    mode = np.linalg.norm(x[:, None] - RING, axis=-1).argmin(1)
    share = np.bincount(mode, minlength=8) / len(x)
    error = np.sqrt(WEIGHTS * (1 - WEIGHTS) / len(x))
    assert (abs(share - WEIGHTS) < 4.5 * error).all()
    inside = x - RING[mode]
    np.testing.assert_allclose(inside.std(0), 0.7, rtol=0.1)
    assert not info.is_divergent.any()


@pytest.mark.slow
def test_jump_shrinks_the_law_and_the_draw_does_not():
    target = Target(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(3))
    options = {"num_warmup": 0, "num_samples": 1500, "num_starts": 8, "spec": SPEC}
    looks = {"num_looks": 8, "noise": 1.5, "num_look_steps": 6}
    jumped, info, _ = sample(target, final="jump", **looks, **options)
    drawn, _, _ = sample(target, final="draw", **looks, **options)
    # Var E[X | ybar] = 1 / (1 + noise^2 / looks)
    shrunk = 1 / (1 + 1.5**2 / 8)
    # one standard error of a variance over three coordinates is 2 %
    assert abs(jumped.position.var() / shrunk - 1) < 0.09
    assert abs(drawn.position.var() - 1) < 0.09
    # one estimate of D more than the looks, and the evaluation of where it lands
    assert (info.num_grad_evals == (8 * 6 + 1) * 2 + 1).all()
    assert np.isnan(info.acceptance_rate).all()


@pytest.mark.slow
def test_density_with_holes_never_yields_a_draw_in_one():
    def holed(x):
        density = -0.5 * jnp.sum(x**2)
        return jnp.where(jnp.abs(x[0]) < 0.3, jnp.nan, density)

    target = Target(holed, jnp.ones(2))
    states, _, _ = sample(target, spec=SPEC, num_warmup=20, num_samples=300)
    assert np.isfinite(states.logdensity).all()
    assert (np.abs(states.position[:, 0]) >= 0.3).all()
