"""One file an algorithm. A new kernel is a new file and its name in `BUILTIN`."""

#: Modules of this package, each with a `SPEC` or a tuple `SPECS`.
BUILTIN = (
    "nuts",
    "ula",
    "mala",
    "blackjax",
    "ensemble",
    "sgld",
    "fsgld",
    "myula",
    "rbmumla",
    "multalmc",
    "clc",
)
