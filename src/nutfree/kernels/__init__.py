"""One file an algorithm. A new kernel is a new file and its name in `BUILTIN`."""

#: Modules of this package, each with a `SPEC` or a tuple `SPECS`.
BUILTIN = (
    "nuts",
    "ula",
    "mala",
    "blackjax",
    "ensemble",
    "sgld",
    "psgld",
    "sghmc",
    "sgbaoab",
    "sgnht",
    "csgld",
    "ssgmcmc",
    "fsgld",
    "myula",
    "rbmumla",
    "marbmumla",
    "multiscale",
    "multalmc",
    "multcdiff",
    "clc",
)
