"""BlackJAX's own kernels, so that a NumPyro model can be given to them.

Each runs as its documentation says, with BlackJAX's own adaptation where it has one:
they are the peers that the other families are compared with.
"""

from nutfree.kernels.blackjax import chain, microcanonical, slice_, smc, stochastic

SPECS = (
    *chain.SPECS,
    *microcanonical.SPECS,
    *slice_.SPECS,
    *stochastic.SPECS,
    *smc.SPECS,
)
