"""FA-LD as its paper has it, a baseline: averaged owners with nothing to correct them.

Reference: Plassier, Moulines and Durmus, arXiv 2112.05120. As `fald`, with

    v_s = gamma_s grad log p_s.

Bias of order h K: an owner's K steps lead towards its own posterior. Where owners
differ, means are off by posterior sds, and with part of the owners in a round variances
by many times. The preconditioner and h are found as for `fald`.
"""

from nutfree.facts import federated_baseline
from nutfree.kernels.federated.fald import Options, privacy_of
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.rounds import Scheme, scheme_of
from nutfree.kernels.federated.spec import BIAS_OF_BASELINE, federated_spec


def scheme(options: Options, owners: Owners) -> Scheme:
    return scheme_of(owners, options, False, privacy_of(options))


SPEC = federated_spec(
    scheme,
    Options,
    name="plain_fald",
    summary="federated averaging without surrogates: a baseline, off where they differ",
    paper="arXiv 2112.05120",
    suits=federated_baseline,
    bias=BIAS_OF_BASELINE + "fald",
)
