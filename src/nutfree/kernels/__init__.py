"""One file an algorithm. A new kernel is a new file and its name in `BUILTIN`."""

#: Modules of this package, each with a `SPEC` or a tuple `SPECS`.
BUILTIN = (
    "numpyro.nuts",
    "langevin.ula",
    "langevin.mala",
    "blackjax",
    "ensemble.ensemble",
    "ensemble.follmer",
    "sgld.sgld",
    "sgld.psgld",
    "sgld.sghmc",
    "sgld.sgbaoab",
    "sgld.sgnht",
    "sgld.csgld",
    "sgld.ssgmcmc",
    "federated.fsgld",
    "federated.fald",
    "federated.dsgld",
    "federated.plain_fald",
    "bregman.myula",
    "bregman.rbmumla",
    "bregman.marbmumla",
    "multiscale.multiscale",
    "multiscale.multalmc",
    "multiscale.multcdiff",
    "chain.clc",
)
