"""A NumPyro model becomes a `Target`, whose parts are found by tracing the model.

`analyse` traces the model once; the `ModelFrontend` that it returns is built into
targets for any arguments of the same structure. Building is cheap and traceable.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer.util import (
    _unconstrain_params,
    compute_log_probs,
    constrain_fn,
    potential_energy,
    unconstrain_fn,
)

from nutfree.errors import InvalidData, NutfreeError
from nutfree.frontends import sites
from nutfree.frontends.alike import Plan, plan_owners
from nutfree.frontends.arguments import Arguments, arguments, constant
from nutfree.frontends.checks import (
    cannot_run,
    check_latent,
    check_nan,
    check_observed,
)
from nutfree.frontends.enumeration import (
    max_plate_nesting,
    summed_logdensity,
    summed_out,
)
from nutfree.frontends.federated import (
    FederatedModel,
    checked_owners,
    owner_with_most_rows,
    shard_models,
)
from nutfree.frontends.handlers import full_data, is_jacobian, prior_only
from nutfree.frontends.nonsmooth import part_of
from nutfree.frontends.plates import data_plate, row_terms
from nutfree.frontends.shares import unclipped
from nutfree.frontends.starts import at_random, start_of_owners, starter
from nutfree.frontends.windows import (
    Window,
    check_deterministic,
    find,
    in_memory,
    streamed_target,
)
from nutfree.target import (
    At,
    LogDensity,
    Minibatch,
    OwnersAlike,
    Position,
    Prior,
    Shards,
    Split,
    Target,
    has_gradient,
)


@dataclass(frozen=True, eq=False)
class ModelFrontend:
    """A NumPyro model and what its trace says about it.

    Args:
        model: the model, its params replaced by their values.
        original: the model as the user gave it.
        supports: constraint of each latent site.
        shapes: shape of each latent site on the sampling space.
        nonsmooth: sites, observed ones too, with a non-smooth term that is known.
        plate: name of the plate whose rows can be drawn in batches, or None.
        num_data: its size.
        proper: whether the prior can be drawn from.
        advice: for each absent part, what to write so that it is there.
        summed: names of the discrete sites that are summed out.
        nesting: dimensions that the plates of the model take.
        shards_of: the shards of the arguments that they were last built for.
    """

    model: Callable
    original: Callable
    supports: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    nonsmooth: frozenset[str]
    plate: str | None
    num_data: int
    proper: bool
    advice: Mapping[str, str] = field(default_factory=dict)
    summed: tuple[str, ...] = ()
    nesting: int = 0
    shards_of: dict = field(default_factory=dict, repr=False)

    def starter(
        self, arguments: Arguments, **how: Any
    ) -> Callable[[jax.Array], Position]:
        """Return `rng_key -> position`, see `nutfree.frontends.starts.starter`."""
        start = starter(self.model, arguments, **how)
        args, kwargs = arguments.now
        shards = self._shards(args, kwargs)
        if shards is None or shards.alike is None:
            return start
        largest = owner_with_most_rows(checked_owners(*args, **kwargs))
        model = shard_models(self.original, [largest])[0]
        return start_of_owners(starter(model, constant(), **how), shards.alike, start)

    def prior_logdensity(self, args: tuple = (), kwargs=None) -> LogDensity:
        """Return the log density of the latent sites alone, on the sampling space."""
        model = prior_only(full_data(handlers.seed(self.model, 0)))
        return self._logdensity(model, args, dict(kwargs or {}))

    def _logdensity(self, model: Callable, args: tuple, kwargs) -> LogDensity:
        if self.summed:
            return summed_logdensity(model, args, kwargs, self.nesting)
        return lambda position: -potential_energy(model, args, kwargs, position)

    def build(
        self, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Target:
        """Build the target for these arguments; it is traceable in them."""
        kwargs = dict(kwargs or {})
        if find(Window, (args, kwargs)):
            return streamed_target(self, args, kwargs)
        model = full_data(handlers.seed(self.model, 0))

        def latent(values):
            return {name: values[name] for name in self.supports}

        def unconstrain(values):
            return unconstrain_fn(model, args, kwargs, latent(values))

        def prior_sample(rng_key):
            seeded = full_data(handlers.seed(self.model, rng_key))
            trace = handlers.trace(seeded).get_trace(*args, **kwargs)
            return unconstrain({name: trace[name]["value"] for name in self.supports})

        def constrain(position):
            return constrain_fn(
                model, args, kwargs, position, return_deterministic=True
            )

        prior = Prior(prior_sample, self.prior_logdensity(args, kwargs))
        target = Target(
            self._logdensity(model, args, kwargs),
            prior=prior if self.proper else None,
            split=self._split(model, args, kwargs, constrain, unconstrain),
            minibatch=self._minibatch(args, kwargs),
            constrain=constrain,
            unconstrain=unconstrain,
            advice=self.advice,
        )
        return replace(target, shards=self._shards(args, kwargs))

    def arguments(self, args: tuple, kwargs: Mapping[str, Any] | None, gradient: bool):
        """Return the model's arguments as a program takes them.

        Args:
            gradient: whether the program may ask for the gradient.
        """
        dtype = jnp.result_type(float)
        at = {k: jax.ShapeDtypeStruct(v, dtype) for k, v in self.shapes.items()}

        def computes(args, kwargs, position, key_data):
            target = self.build(args, kwargs)
            density = target.logdensity_fn
            found = [(jax.value_and_grad(density) if gradient else density)(position)]
            found += [target.constrain(position)]
            if target.prior is not None:
                key = jax.random.wrap_key_data(key_data)
                found += [target.prior.sample(key), target.prior.logdensity(position)]
            if target.minibatch is not None:
                found += [target.minibatch.terms(position, jnp.arange(2))]
            if target.split is not None:
                values = target.split.constrain(position)
                found += [target.split.terms(values), target.split.log_det(position)]
            shards = target.shards or ()
            if isinstance(shards, Shards) and shards.alike is not None:
                shards = shards[:1]  # the others are the same function
            return found + [shard(position) for shard in shards]

        key_data = jax.random.key_data(jax.random.key(0))
        return arguments((args, dict(kwargs or {})), computes, at, key_data)

    def _minibatch(self, args, kwargs) -> Minibatch | None:
        if self.plate is None:
            return None
        terms = row_terms(self.model, self.plate, self.num_data, args, kwargs)
        return Minibatch(self.num_data, terms, self.plate)

    def _split(self, model, args, kwargs, constrain, unconstrain) -> Split | None:
        if "split" in self.advice:
            return None

        def terms(values):
            log_probs, trace = compute_log_probs(model, args, kwargs, values)
            nonsmooth = {name: part_of(trace[name]) for name in self.nonsmooth}
            smooth = sum(v for k, v in log_probs.items() if k not in nonsmooth)
            for name, part in nonsmooth.items():
                term, x = part if isinstance(part, At) else (part, values[name])
                # what is left of the site's log density is its normaliser
                smooth = smooth + log_probs[name] + term.value(x)
            return smooth, nonsmooth

        def log_det(position):
            at_position = _unconstrain_params(model, position)
            log_probs, _ = compute_log_probs(at_position, args, kwargs, {})
            jacobians = [v for k, v in log_probs.items() if is_jacobian(k)]
            return sum(jacobians, jnp.asarray(0.0))

        def latent(position):
            values = constrain(position)
            return {name: values[name] for name in self.supports}

        return Split(terms, self.supports, latent, unconstrain, log_det)

    def _shards(self, args, kwargs) -> Shards | None:
        """Build a target per owner: its likelihood and an even share of the prior."""
        if not isinstance(self.original, FederatedModel):
            return None
        leaves = jax.tree.leaves((args, kwargs))
        ids = tuple(id(leaf) for leaf in leaves)
        if ids not in self.shards_of:
            traced = any(isinstance(leaf, jax.core.Tracer) for leaf in leaves)
            # how owners are alike shows in their values; arguments that are fed to a
            # program are stacked as those with values were
            plan = self.shards_of.get("plan")
            if not traced:
                plan = plan_of(self.original, *args, **kwargs)
            shards = make_shards(self.original, plan, *args, **kwargs)
            if traced:
                return shards
            # the leaves are kept, so that their identities stay theirs
            self.shards_of.clear()
            self.shards_of.update({"plan": plan, ids: (leaves, shards)})
        return self.shards_of[ids][1]


def analyse(
    model: Callable,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plate: str | None = None,
    may_be_empty: bool = False,
) -> ModelFrontend:
    """Trace a NumPyro model once and find which parts of a `Target` it can give.

    Args:
        model: a NumPyro model, or `nutfree.federated(model)`.
        args, kwargs: its arguments.
        plate: name of the data plate, where the model has several.
        may_be_empty: whether a model without latent sites is one.

    Raises:
        InvalidData: if the model is no function or cannot run on these arguments, or
            an observation is no number or does not have the shape of its distribution.
        UnsupportedModel: for a discrete latent site, by name; a model without latent
            sites.
    """
    streamed = bool(find(Window, (args, kwargs)))
    args, kwargs = in_memory((args, dict(kwargs or {})))
    try:
        trace, another = (
            handlers.trace(at_random(model, seed)).get_trace(*args, **kwargs)
            for seed in (0, 1)
        )
    except NutfreeError:
        raise
    # the model is the user's own code and can raise whatever it likes; all of it means
    # that the model does not run on these arguments, and the cause is chained
    except Exception as error:
        check_nan(args, kwargs)
        raise cannot_run(error, (args, kwargs)) from error
    params = {k: s["value"] for k, s in trace.items() if s["type"] == "param"}
    fixed = unclipped(handlers.substitute(model, data=params) if params else model)
    drawn = {k: s for k, s in trace.items() if s["type"] == "sample"}
    latent = {k: s for k, s in drawn.items() if not s["is_observed"]}
    summed = summed_out(latent, not (streamed or isinstance(model, FederatedModel)))
    latent = {k: s for k, s in latent.items() if k not in summed}
    if not may_be_empty:
        check_latent(latent)
    check_observed({k: s for k, s in drawn.items() if s["is_observed"]})

    advice = {}
    supports = {k: sites.support(s["fn"], another[k]["fn"]) for k, s in latent.items()}
    shapes = {k: sites.unconstrained_shape(s) for k, s in latent.items()}
    nonsmooth = frozenset(k for k, s in drawn.items() if part_of(s) is not None)
    if summed:
        nonsmooth = frozenset()
        advice["split"] = (
            f"the discrete site '{summed[0]}' is summed out, which no part of the "
            "density is apart from."
        )
    elif not nonsmooth and all(sites.is_real(c) for c in supports.values()):
        advice["split"] = (
            "every latent site of this model is smooth and unbounded. Give a site a "
            "Laplace prior, dist.Laplace(0, scale), or a bounded support, or declare a "
            'term: nutfree.nonsmooth("tv", jnp.diff(x), scale).'
        )
    improper = [k for k, s in latent.items() if sites.is_improper(s["fn"])]
    if improper:
        advice["prior"] = (
            f"give the improper site '{improper[0]}' a proper distribution, for "
            "instance a wide dist.Normal."
        )
    if isinstance(model, FederatedModel) and plate is None:
        num_data, missing = (
            0,
            "the rows belong to their owners; use a federated kernel.",
        )
    elif summed:
        plate, num_data, missing = (
            None,
            0,
            f"the discrete site '{summed[0]}' is summed out over all rows. Sum it out "
            "by hand, for instance with dist.MixtureSameFamily.",
        )
    else:
        plate, num_data, missing = data_plate(fixed, trace, args, kwargs, plate)
    if plate is None:
        advice["minibatch"] = missing
    elif streamed:
        check_deterministic(trace, plate)
    return ModelFrontend(
        fixed,
        model,
        supports,
        shapes,
        nonsmooth,
        plate,
        num_data,
        not improper,
        advice,
        summed,
        max_plate_nesting(trace),
    )


def model_target(
    model: Callable,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plate: str | None = None,
    rng_key: jax.Array | None = None,
) -> Target:
    """Build the `Target` of a NumPyro model, its `position` a starting point.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> def model():
        ...     numpyro.sample("x", dist.HalfNormal())
        >>> target = model_target(model)
        >>> bool(target.prior is not None)
        True
    """
    if isinstance(model, Target):
        raise InvalidData(
            "This needs a NumPyro model, and it is a Target. nutfree.kernel(name, "
            "target) samples it, and nutfree.check(tree, target) judges its draws."
        )
    frontend = analyse(model, args, kwargs, plate=plate)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    target = frontend.build(args, kwargs)
    origin = {name: jnp.zeros(shape) for name, shape in frontend.shapes.items()}
    # one without a gradient is for the kernels that need none; rows on disk have one
    streamed = bool(find(Window, (args, kwargs)))
    gradient = streamed or has_gradient(replace(target, position=origin))
    start = frontend.starter(constant(args, kwargs), validate_grad=gradient)
    position = start(rng_key)
    return replace(target, position=position)


def plan_of(model: FederatedModel, owners: Any) -> Plan | None:
    """Return how the owners are alike, from their values; None where they are not."""
    owners = checked_owners(owners)
    models = shard_models(model, owners)
    if len(owners) == 1:
        return None
    largest = owner_with_most_rows(owners)
    number = next(s for s, owner in enumerate(owners) if owner is largest)
    return plan_owners(unclipped(model.model), owners, analyse(models[number]))


def make_shards(model: FederatedModel, plan: Plan | None, owners: Any) -> Shards:
    """Build a target per owner: its likelihood and an even share of the prior."""
    owners = checked_owners(owners)
    if plan is not None:
        alike = plan.stack(owners)
        return Shards(
            (_target_of(alike, s, n) for s, n in enumerate(plan.sizes)), alike
        )
    models = shard_models(model, owners)
    return Shards(owner_target(owner, len(owners)) for owner in models)


def _left_to_others(frontend: ModelFrontend, num_owners: int) -> LogDensity:
    """Return the part of the prior that an owner's log density does not have."""
    prior = frontend.prior_logdensity()
    return lambda position: (1.0 - 1.0 / num_owners) * prior(position)


def _target_of(alike: OwnersAlike, s: int, num_data: int) -> Target:
    def one():
        return jax.tree.map(lambda leaf: leaf[s], alike.data)

    def logdensity(position):
        return alike.logdensity(position, one())

    if alike.terms is None or alike.num_data is None:
        return Target(logdensity)

    def terms(position, indices):
        return alike.terms(position, indices, one())

    return Target(logdensity, minibatch=Minibatch(num_data, terms))


def owner_target(model: Callable, num_owners: int) -> Target:
    """Build the target of one owner's model, whose prior counts 1 / num_owners.

    Args:
        model: a NumPyro model without arguments, see `federated.shard_models`.
    """
    frontend = analyse(model)
    target, shared = frontend.build(), _left_to_others(frontend, num_owners)

    def logdensity(position):
        return target(position) - shared(position)

    whole = target.minibatch
    if whole is None:
        return Target(logdensity)

    def terms(position, indices):
        outside, rows = whole.terms(position, indices)
        return outside - shared(position), rows

    return Target(logdensity, minibatch=replace(whole, terms=terms))
