"""The pooled mode, from owners' expansions: Newton's method with few messages.

The server asks for expansions at a proposed centre and pools them. One whose value is
no lower than the best so far becomes the best, and the next centre is a Newton step
from it; otherwise the step from the best is a quarter as long. Negative curvature is
reflected. The last expansions are the surrogates, so that they cost no message of their
own. With noise in what owners send (`privacy`) there is no value, and all are accepted.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from nutfree.kernels.federated.federation import Expansion
from nutfree.numerics.evaluation import is_finite, select
from nutfree.numerics.laplace import inverse, positive
from nutfree.numerics.preconditioning import matvec

#: Most messages to an owner.
MAX_MESSAGES = 40
#: What is said of a search that they have ended.
NO_MODE = (
    f"The owners' pooled mode was not found in {MAX_MESSAGES} messages, so that their "
    "surrogates are no approximation of the posterior. Give the model tighter priors "
    "or fewer parameters, or run NUTS where rows may be pooled."
)
#: As many where each has its price.
MAX_PRIVATE_MESSAGES = 3
#: Newton's decrement, in posterior sds, at which the mode is found.
CLOSE = 0.1
#: Values of float32 differ by that much, relatively, where they are alike.
ROUNDING = 2e-6


class Search(NamedTuple):
    """The search so far.

    proposal
        Where owners are asked next, `(d,)`.
    centre, best
        The best point so far, and the pooled expansion there.
    kept
        What the server keeps of owners' answers at the best point, any pytree.
    fraction
        Of a Newton step that the next proposal is.
    sent
        Messages to each owner.
    found
        Whether the search has ended.
    """

    proposal: jax.Array
    centre: jax.Array
    best: Expansion
    kept: Any
    fraction: jax.Array
    sent: jax.Array
    found: jax.Array


def begin(
    x: jax.Array, pooled: Expansion, kept: Any, max_messages: int = MAX_MESSAGES
) -> Search:
    """Start at `x`, where owners have answered once."""
    one = jnp.ones((), x.dtype)
    search = Search(x, x, pooled, kept, one, jnp.asarray(1), jnp.asarray(False))
    return _propose(search, max_messages)


def update(
    search: Search, pooled: Expansion, kept: Any, max_messages: int = MAX_MESSAGES
) -> Search:
    """Take the owners' pooled answer at `search.proposal`."""
    slack = ROUNDING * jnp.abs(search.best.value)
    better = is_finite(pooled) & (pooled.value >= search.best.value - slack)
    accepted = search._replace(
        centre=search.proposal,
        best=pooled,
        kept=kept,
        fraction=jnp.minimum(1.0, 2 * search.fraction),
    )
    refused = search._replace(fraction=search.fraction / 4)
    taken = select(better, accepted, refused)
    return _propose(taken._replace(sent=search.sent + 1), max_messages)


def _propose(search: Search, max_messages: int) -> Search:
    covariance = inverse(positive(search.best.precision))
    step = matvec(covariance, search.best.gradient)
    decrement = jnp.sqrt(jnp.abs(jnp.dot(step, search.best.gradient)))
    close = decrement * jnp.where(search.fraction < 1e-3, 0, 1) < CLOSE
    proposal = search.centre + search.fraction * step
    over = (search.sent >= max_messages) | ~is_finite(proposal)
    return search._replace(proposal=proposal, found=close | over)


def find_mode(
    ask: Callable, x: jax.Array, count: Any, max_messages: int = MAX_MESSAGES
) -> tuple[Search, Any]:
    """Search from `x` in one program.

    Args:
        ask: `(centre, count) -> (pooled expansion, kept, count)`.

    Returns:
        `(Search, count)`.
    """
    pooled, kept, count = ask(x, count)

    def going(carry):
        return ~carry[0].found

    def step(carry):
        search, count = carry
        pooled, kept, count = ask(search.proposal, count)
        return update(search, pooled, kept, max_messages), count

    return jax.lax.while_loop(
        going, step, (begin(x, pooled, kept, max_messages), count)
    )
