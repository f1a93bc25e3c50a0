"""DSGLD: owners' local Langevin steps with nothing to correct them, a baseline.

Reference: Ahn, Shahbaba and Welling, ICML 2014; here as arXiv 2004.11231 has it. An
owner s, visited with probability f_s, makes K steps and hands x on:

    x' = x + (h/2) C grad log p_s(x) / f_s + sqrt(h C) xi.

Bias of order h, see `family`, with V of the size of K times the variance of owners'
gradients: where owners differ, draws are useful at steps only that are far smaller than
those of `fsgld`. The preconditioner and h are found as there.
"""

from nutfree.facts import federated_baseline
from nutfree.kernels.federated.fsgld import Options, scheme_of
from nutfree.kernels.federated.owners import Owners
from nutfree.kernels.federated.rounds import Scheme
from nutfree.kernels.federated.spec import BIAS_OF_BASELINE, federated_spec


def scheme(options: Options, owners: Owners) -> Scheme:
    return scheme_of(options, owners, conducive=False)


SPEC = federated_spec(
    scheme,
    Options,
    name="dsgld",
    summary="federated Langevin without surrogates: a baseline, off where they differ",
    paper="Ahn, Shahbaba and Welling 2014",
    suits=federated_baseline,
    bias=BIAS_OF_BASELINE + "fsgld",
)
