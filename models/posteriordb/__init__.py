"""Posteriors of the posteriordb collection, with their reference draws.

Each is its Stan program rewritten in NumPyro: the same priors, flat ones included, and
the same names of sites. Next to ``model`` and ``data`` a module here has
``reference()``: a dictionary from a site's name to reference draws, an array of shape
(10 chains, 1000 draws, *shape of the site)::

    from models import posteriordb

    garch = posteriordb.load("garch11")
    garch.reference()["mu"].shape  # (10, 1000)

Programs, data and draws: https://github.com/stan-dev/posteriordb (BSD-3-Clause).
"""

from models import _shelf

__all__ = ["load", "names"]


def names() -> list[str]:
    """The names of the posteriors, sorted."""
    return _shelf.names(__path__)


def load(name: str):
    """The module of the posterior called ``name``.

    Raises:
        LookupError: no posterior has that name; the message gives the nearest.
    """
    return _shelf.load(__name__, __path__, name)
