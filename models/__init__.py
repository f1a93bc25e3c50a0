"""A zoo of NumPyro models with their data, shared by demos, tests and benchmarks.

Every model is a module with two functions: ``model(...)``, in plain NumPyro, and
``data()``, which returns a dictionary of the model's keyword arguments::

    import models

    zoo = models.load("galaxies")
    NUTS(zoo.model)  # run with mcmc.run(rng_key, **zoo.data())

``models.posteriordb`` holds those that come with reference draws.
"""

from models import _shelf

__all__ = ["load", "names"]


def names() -> list[str]:
    """The names of the models in the zoo, sorted."""
    return _shelf.names(__path__)


def load(name: str):
    """The module of the model called ``name``.

    Raises:
        LookupError: no model has that name; the message gives the nearest.
    """
    return _shelf.load(__name__, __path__, name)
