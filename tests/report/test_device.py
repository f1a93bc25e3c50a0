"""How many chains cost nothing more, from what they took."""

import jax.numpy as jnp
import pytest

import nutfree as nf
from nutfree.report.device import CHAINS, free_chains, most_at_no_cost


@pytest.mark.parametrize(
    ("seconds", "most"),
    [
        ({4: 1.0, 16: 1.1, 64: 1.2, 256: 3.0}, 64),
        ({4: 1.0, 16: 2.0, 64: 1.1, 256: 1.1}, 4),
        ({4: 1.0, 16: 0.9, 64: 0.8, 256: 1.2}, 256),
    ],
)
def test_the_most_chains_that_take_no_longer_than_the_fewest(seconds, most):
    assert most_at_no_cost(seconds) == most


def test_the_gradients_of_a_target_are_timed():
    target = nf.Target(lambda x: -0.5 * (x @ x), position=jnp.zeros(2))
    assert free_chains(target) in CHAINS
