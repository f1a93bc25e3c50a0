"""FA-LD with conducive gradients: owners step side by side and are averaged.

Reference: Plassier, Moulines and Durmus, arXiv 2112.05120, with the surrogates of arXiv
2004.11231. In a round, the owners that take part make K steps each from the same x, and
x' = sum_s a_s x_s:

    x_s' = x_s + (h/2) C v_s(x_s) + sqrt(h) R (rho xi + sqrt((1 - rho^2)/a_s) xi_s),
    v_s  = gamma_s (grad log p_s - grad log q_s) + grad log q,     q = prod_s q_s,

see `federation`. The server needs sums over owners alone, so secure aggregation fits.
Bias of order h, see `family`. The paper is without surrogates (`plain_fald`) and C, and
its second scheme of partial participation has averages whose weights do not sum to one.
On a Gaussian, V is zero at any participation with all rows; elsewhere owners that are
K steps apart add a bias of order h^2 K^2, the larger the smaller rho is.
"""

from dataclasses import dataclass

from nutfree.errors import InvalidOption
from nutfree.kernels.federated.family import (
    max_inflation_option,
    num_rounds_option,
    share_exact_option,
    step_size_option,
)
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.privacy import Privacy
from nutfree.kernels.federated.rounds import DRAWS, WEIGHTS, Scheme, scheme_of
from nutfree.kernels.federated.spec import federated_spec
from nutfree.registry import option


@dataclass(frozen=True)
class Options:
    num_local_steps: int = option(10, "steps K of an owner between averages", ge=1)
    participation: float = option(
        1.0, "share of the owners that take part in a round, at least one", gt=0, le=1
    )
    draws: str = option(
        "without replacement",
        "how those that take part are drawn: evenly and without replacement, or by "
        "their weights and with replacement",
        choices=DRAWS,
    )
    weights: str = option(
        "rows",
        "an owner's weight in the average: by its number of rows, or even",
        choices=WEIGHTS,
    )
    shared_noise: float = option(
        0.9,
        "rho: 1 is noise that all owners make alike, the most accurate, but it hides "
        "nothing from the server; 0 is each owner's own, which hides the most",
        ge=0,
        le=1,
    )
    batch_size: int | None = option(
        None, "rows per gradient of an owner; None is all of its rows", ge=1
    )
    clip: float | None = option(
        None,
        "longest gradient of a row on the sampling space, beyond which it is "
        "shortened, with noise on what owners send in warm-up; None sends exact ones",
        gt=0,
    )
    step_clip: float = option(
        2.5,
        "longest gradient of a row in a step where clip is given, in units of its "
        "usual size: longer ones are shortened, which moves the posterior",
        gt=0,
    )
    noise_multiplier: float = option(
        10.0, "noise in what owners send in warm-up, in units of clip", gt=0
    )
    share_exact: bool = share_exact_option()
    max_inflation: float = max_inflation_option()
    step_size: float | None = step_size_option()
    num_rounds: int | None = num_rounds_option()


def scheme(options: Options, owners: Owners) -> Scheme:
    return scheme_of(owners, options, True, privacy_of(options))


def privacy_of(options: Options) -> Privacy | None:
    """Return how rows are clipped, or None where they are not.

    Raises:
        InvalidOption: where what owners send in a round would not be private.
    """
    clip = options.clip or 0.0
    privacy = Privacy(clip, options.step_clip, options.noise_multiplier)
    if options.clip is None:
        return None
    if options.shared_noise == 1:
        raise InvalidOption(
            "clip is given, but all noise is shared, which hides nothing from the "
            "server. Write shared_noise=0, or less than 1."
        )
    if options.batch_size is not None:
        raise InvalidOption(
            "clip is given with batch_size, and rows in batches are not accounted "
            "for. Leave batch_size out."
        )
    return privacy


SPEC = federated_spec(
    scheme,
    Options,
    name="fald",
    summary="federated averaging of Langevin steps with owners' surrogates",
    paper="arXiv 2112.05120, with the surrogates of 2004.11231",
)
