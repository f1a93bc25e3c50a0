"""The NumPyro model of one owner's data becomes the model of several owners' data.

The latents are shared by all owners; everything that belongs to an owner (observed
sites, plates, deterministic and factor sites) is renamed `owner0/y`, `owner1/y`, ...
The result is an ordinary NumPyro model, so NUTS samples the pooled posterior from the
very text that the federated kernels split into one target per owner.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from numpyro.handlers import seed
from numpyro.primitives import CondIndepStackFrame, Messenger

from nutfree.errors import InvalidData, UnsupportedModel

Owner = Mapping[str, Any] | tuple[Any, ...]

#: Message types whose names belong to an owner.
_OWNED = ("sample", "plate", "deterministic", "mutable")


class _Latent:
    """A latent's shape and the kind of its prior, on which owners must agree."""

    def __init__(self, msg):
        fn = msg["fn"]
        sample_shape = tuple(msg["kwargs"].get("sample_shape", ()))
        self.shape = sample_shape + tuple(fn.batch_shape) + tuple(fn.event_shape)
        self.prior = _prior_kind(fn)
        self.plates = {frame.name for frame in msg["cond_indep_stack"]}


def _prior_kind(fn) -> str:
    """Return the name of the prior's class, inside expansion and independence."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return type(fn).__name__


class _OwnerScope(Messenger):
    """Runs the model for owner `number`, sharing the latent `values` of owner 0."""

    def __init__(self, fn, number: int, latents: dict, values: dict):
        super().__init__(fn)
        self.number = number
        self.latents, self.values = latents, values

    def __call__(self, *args, **kwargs):
        self.seen, self.observed_plates, self.num_observed = {}, set(), 0
        self.open = []
        result = super().__call__(*args, **kwargs)
        self._check_after()
        return result

    def process_message(self, msg):
        if msg["type"] == "control_flow":
            raise UnsupportedModel(
                "A federated model cannot share latents through scan or cond; write "
                "the loop as array operations."
            )
        if msg["type"] == "param":
            self.open.append((msg, msg["name"]))
            self._share(msg, msg["name"])
            return
        if msg["type"] == "sample" and self.open:
            # an outer handler makes it while it handles a latent: a site that reparam
            # puts in its place, or the Jacobian of its constraint
            return
        if msg["type"] == "sample" and not msg.get("is_observed"):
            name = msg["name"]
            if name in self.seen:
                raise UnsupportedModel(f"The site '{name}' occurs twice in the model.")
            self.seen[name] = _Latent(msg)
            self.open.append((msg, name))
            if self.number > 0:
                self._check_latent(name)
            self._share(msg, name)
        elif msg["type"] in _OWNED:
            if msg["type"] == "sample":
                self.num_observed += 1
                self.observed_plates |= {f.name for f in msg["cond_indep_stack"]}
            msg["name"] = self._renamed(msg["name"])
        if msg.get("cond_indep_stack"):
            msg["cond_indep_stack"] = [
                CondIndepStackFrame(self._renamed(f.name), f.dim, f.size)
                for f in msg["cond_indep_stack"]
            ]

    def postprocess_message(self, msg):
        # by its message: an outer scope has given it another name by now
        if self.open and self.open[-1][0] is msg:
            _, name = self.open.pop()
            if self.number == 0:
                self.values[name] = msg["value"]

    def _renamed(self, name: str) -> str:
        return f"owner{self.number}/{name}"

    def _share(self, msg, name: str) -> None:
        """Later owners reuse the value, hidden from handlers that would score it."""
        if self.number > 0:
            msg["value"] = self.values[name]
            msg["stop"] = True

    def _check_latent(self, name: str) -> None:
        if name not in self.latents:
            raise InvalidData(
                f"Owner {self.number} has a latent site '{name}' that owner 0 does not "
                "have; all owners must share the same latent sites."
            )
        first, this = self.latents[name], self.seen[name]
        for what, a, b in (
            ("shape", first.shape, this.shape),
            ("prior", first.prior, this.prior),
        ):
            if a != b:
                raise InvalidData(
                    f"The latent site '{name}' has {what} {b} for owner {self.number} "
                    f"and {a} for owner 0; shared latents must agree."
                )

    def _check_after(self) -> None:
        if self.num_observed == 0:
            raise InvalidData(
                f"Owner {self.number} has no observed site. Give every owner its "
                "observations; to predict, call the model of one owner's data "
                "(`.model`) with the posterior draws."
            )
        for name, latent in self.seen.items():
            local = sorted(latent.plates & self.observed_plates)
            if local:
                raise UnsupportedModel(
                    f"The latent site '{name}' lies in the plate '{local[0]}' of an "
                    "owner's observations, so it is local to that owner; federated "
                    "kernels need latents that all owners share."
                )
        if self.number == 0:
            self.latents.update(self.seen)
        elif missing := sorted(set(self.latents) - set(self.seen)):
            raise InvalidData(
                f"Owner {self.number} lacks the latent site '{missing[0]}' of owner 0; "
                "all owners must share the same latent sites."
            )


@dataclass(frozen=True)
class FederatedModel:
    """The pooled model of several owners' data; call it with a list of owners.

    Args:
        model: the NumPyro model of one owner's data.
    """

    model: Callable

    def __call__(self, owners: Sequence[Owner]) -> None:
        owners = checked_owners(owners)
        latents: dict[str, _Latent] = {}
        values: dict[str, Any] = {}
        for number, owner in enumerate(owners):
            scoped = _OwnerScope(self.model, number, latents, values)
            _call(scoped, owner)

    def __getattr__(self, name: str) -> Any:
        # NumPyro and functools look for a model's name
        if name in ("__name__", "__qualname__"):
            return getattr(self.model, name, "model")
        raise AttributeError(name)


def federated(model: Callable) -> FederatedModel:
    """Make the NumPyro model of several owners' data from the model of one owner's.

    Args:
        model: a NumPyro model of one owner's data. Its latent sites are shared by all
            owners and scored once, with the prior that owner 0's arguments give, so
            a prior must not depend on the data. To condition on a latent, wrap the
            federated model, not this one.

    Returns:
        A callable `FederatedModel`: its one argument is a list with each owner's
        arguments, a dict of keyword arguments or a tuple of positional ones.

    Raises:
        InvalidData: when called, if the list is empty, an owner is neither a dict nor
            a tuple or has no observation, or latent sites differ between owners.
        UnsupportedModel: when called, if a latent is local to an owner's plate.

    Example:
        >>> import jax, numpyro, numpyro.distributions as dist
        >>> from numpyro.infer import MCMC, NUTS
        >>> def model(y):
        ...     mu = numpyro.sample("mu", dist.Normal(0, 10))
        ...     with numpyro.plate("data", len(y)):
        ...         numpyro.sample("y", dist.Normal(mu, 1), obs=y)
        >>> owners = [{"y": jax.numpy.ones(3)}, {"y": jax.numpy.zeros(5)}]
        >>> mcmc = MCMC(NUTS(federated(model)), num_warmup=50, num_samples=50,
        ...             progress_bar=False)
        >>> mcmc.run(jax.random.key(0), owners)
        >>> mcmc.get_samples()["mu"].shape
        (50,)
    """
    return FederatedModel(model)


def shard_models(model: Callable, owners: Sequence[Owner]) -> tuple[Callable, ...]:
    """Make a NumPyro model without arguments per owner, its sites named as in `model`.

    Args:
        model: the model of one owner's data, or the `FederatedModel` made of it.
        owners: each owner's arguments.

    Raises:
        InvalidData, UnsupportedModel: as the federated model does.
    """
    if isinstance(model, FederatedModel):
        model = model.model
    owners = checked_owners(owners)
    pooled = seed(FederatedModel(model), jax.random.key(0))
    jax.eval_shape(lambda: pooled(owners))
    return tuple(_with_owner(model, owner) for owner in owners)


def checked_owners(owners: Any) -> tuple[Owner, ...]:
    """Return the owners as a tuple.

    Raises:
        InvalidData: if there is none, or one is neither a dict nor a tuple, or has an
            array without rows.
    """
    form = "a list with a dict of keyword arguments or a tuple of arguments per owner"
    if not isinstance(owners, list | tuple):
        raise InvalidData(
            f"The owners are given as {type(owners).__name__}; write {form}."
        )
    if not owners:
        raise InvalidData(f"The list of owners is empty; write {form}.")
    for number, owner in enumerate(owners):
        if not isinstance(owner, Mapping | tuple):
            raise InvalidData(
                f"Owner {number} is given as {type(owner).__name__}; write {form}."
            )
        for path, leaf in jax.tree_util.tree_leaves_with_path(owner):
            if 0 in getattr(leaf, "shape", ())[:1]:
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                raise InvalidData(
                    f"Owner {number} has no rows: its '{name}' has shape {leaf.shape}. "
                    "Leave it out of the list of owners."
                )
    return tuple(owners)


def owner_with_most_rows(owners: Sequence[Owner]) -> Owner:
    """Return the owner whose arrays are the longest together."""

    def length(owner: Owner) -> int:
        shapes = [getattr(leaf, "shape", ()) for leaf in jax.tree.leaves(owner)]
        return sum(shape[0] for shape in shapes if shape)

    return max(owners, key=length)


def _call(model: Callable, owner: Owner) -> Any:
    return model(**owner) if isinstance(owner, Mapping) else model(*owner)


def _with_owner(model: Callable, owner: Owner) -> Callable:
    def owner_model():
        return _call(model, owner)

    return owner_model
