"""BlackJAX's own kernels, for NumPyro's models.

They are the peers that the other families are compared with, so each runs as its
documentation says, and with BlackJAX's own adaptation where it has one.
"""

from nutfree.kernels.blackjax import (
    elliptical_slice,
    metropolis,
    microcanonical,
    stochastic_gradient,
    tempered_smc,
)

SPECS = (
    *metropolis.SPECS,
    *microcanonical.SPECS,
    *elliptical_slice.SPECS,
    *stochastic_gradient.SPECS,
    *tempered_smc.SPECS,
)
