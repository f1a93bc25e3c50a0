"""LBMUMLA: left Bregman-Moreau unadjusted mirror Langevin.

Reference: Lau and Liu, arXiv 2207.04387, as `rbmumla` has it, but with the envelope

    inf_y g(y) + D_phi(y, x) / lambda,
    gradient grad^2 phi(x) (x - prox(x)) / lambda,

whose argument is in the first place of the divergence. The two differ where phi is not
quadratic, so that the real line has the hyperbolic entropy here. Under it the proximal
operator of |.| is a soft threshold of the dual variable. The bias and its orders are
those of RBMUMLA, and so are the gradients.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from nutfree.kernels.bregman import rbmumla
from nutfree.kernels.bregman.envelopes import left_bregman_envelope
from nutfree.kernels.bregman.rbmumla import build_kernel as build
from nutfree.kernels.bregman.rbmumla import init as init_mirrored
from nutfree.kernels.bregman.rbmumla import warmup as warmup_of
from nutfree.registry import option
from nutfree.warmup import Warmup


@dataclass(frozen=True)
class Options(rbmumla.Options):
    geometry: str = option(
        "hyperbolic",
        rbmumla.GEOMETRY_HELP,
        choices=("hyperbolic", "entropy", "barrier"),
    )


def init(position, logdensity_fn, rng_key=None, options=Options()):
    return init_mirrored(position, logdensity_fn, rng_key, options)


def build_kernel(options=Options()) -> Callable:
    """Return the kernel of `rbmumla.build_kernel`, with the left envelope."""
    return build(options, envelope=left_bregman_envelope)


def warmup(options=Options()) -> Warmup:
    return warmup_of(options, build=build_kernel)


SPEC = replace(
    rbmumla.SPEC,
    name="lbmumla",
    summary="unadjusted mirror Langevin with the hyperbolic entropy and left envelopes",
    init=init,
    build_kernel=build_kernel,
    warmup=warmup,
    options=Options,
)
