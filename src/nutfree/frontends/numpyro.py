"""A NumPyro model becomes a `Target`: its parts are found, not asked for.

The model is analysed once, from one trace, and then built into targets for any
arguments of the same structure; building is cheap and traceable.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import (
    _unconstrain_params,
    compute_log_probs,
    constrain_fn,
    initialize_model,
    potential_energy,
    unconstrain_fn,
)

from nutfree.dynamics.proximal import LaplaceTerm
from nutfree.errors import InvalidData, NoFiniteStart, UnsupportedModel
from nutfree.frontends.federated import FederatedModel, shard_models
from nutfree.frontends.handlers import full_data, is_jacobian, prior_only
from nutfree.target import LogDensity, Minibatch, Position, Prior, Split, Target


@dataclass(frozen=True, eq=False)
class ModelFrontend:
    """A NumPyro model and what one trace of it told.

    Args:
        model: the model, its params replaced by their values.
        original: the model as it was given.
        supports: constraint of each latent site.
        laplace: latent sites with a Laplace distribution.
        plate: name of the plate whose rows can be drawn in batches, or None.
        num_data: its size.
        proper: whether the prior can be drawn from.
        advice: for each absent part, what to write so that it is there.
    """

    model: Callable
    original: Callable
    supports: Mapping[str, Any]
    laplace: frozenset[str]
    plate: str | None
    num_data: int
    proper: bool
    advice: Mapping[str, str] = field(default_factory=dict)

    def start(
        self,
        rng_key: jax.Array,
        args: tuple = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        init_strategy: Callable = init_to_uniform,
        validate_grad: bool = True,
    ) -> Position:
        """A starting position with a finite log density, one per key.

        Args:
            rng_key: one key, or a batch of them, shape `(num_chains,)`.

        Raises:
            InvalidData: if a NaN in the data is why there is none.
            NoFiniteStart: if there is none for another reason.
        """
        kwargs = dict(kwargs or {})
        try:
            return initialize_model(
                rng_key,
                full_data(self.model),
                init_strategy=init_strategy,
                model_args=args,
                model_kwargs=kwargs,
                validate_grad=validate_grad,
            ).param_info.z
        except RuntimeError as error:
            if "Cannot find valid initial parameters" not in str(error):
                raise
            _check_nan(args, kwargs)
            raise self._why_no_start(args, kwargs) from None

    def _why_no_start(self, args, kwargs) -> NoFiniteStart:
        log_probs, _ = compute_log_probs(_started(self.model, 0), args, kwargs, {})
        bad = [k for k, v in log_probs.items() if not bool(jnp.isfinite(v))]
        where = f" Sites with no finite log density: {', '.join(bad)}." if bad else ""
        return NoFiniteStart(
            f"No starting point with a finite log density in 100 tries.{where} Check "
            "that the data lie in the support of their distribution, or pass "
            "init_strategy=numpyro.infer.init_to_value(values={...}) or init_params."
        )

    def prior_logdensity(self, args: tuple = (), kwargs=None) -> LogDensity:
        """Log density of the latent sites alone on the sampling space."""
        model = prior_only(full_data(handlers.seed(self.model, 0)))
        kwargs = dict(kwargs or {})
        return lambda position: -potential_energy(model, args, kwargs, position)

    def build(
        self, args: tuple = (), kwargs: Mapping[str, Any] | None = None
    ) -> Target:
        """The target for these arguments; traceable in them."""
        kwargs = dict(kwargs or {})
        model = full_data(handlers.seed(self.model, 0))

        def logdensity(position):
            return -potential_energy(model, args, kwargs, position)

        def latent(values):
            return {name: values[name] for name in self.supports}

        def unconstrain(values):
            return unconstrain_fn(model, args, kwargs, latent(values))

        def prior_sample(rng_key):
            seeded = full_data(handlers.seed(self.model, rng_key))
            sites = handlers.trace(seeded).get_trace(*args, **kwargs)
            return unconstrain({name: sites[name]["value"] for name in self.supports})

        def constrain(position):
            return constrain_fn(
                model, args, kwargs, position, return_deterministic=True
            )

        prior = Prior(prior_sample, self.prior_logdensity(args, kwargs))
        target = Target(
            logdensity,
            prior=prior if self.proper else None,
            split=self._split(model, args, kwargs, constrain, unconstrain),
            minibatch=self._minibatch(args, kwargs),
            constrain=constrain,
            unconstrain=unconstrain,
            advice=self.advice,
        )
        return replace(target, shards=self._shards(args, kwargs))

    def _minibatch(self, args, kwargs) -> Minibatch | None:
        if self.plate is None:
            return None
        terms = _row_terms(self.model, self.plate, self.num_data, args, kwargs)
        return Minibatch(self.num_data, terms, self.plate)

    def _split(self, model, args, kwargs, constrain, unconstrain) -> Split | None:
        if "split" in self.advice:
            return None

        def terms(values):
            log_probs, trace = compute_log_probs(model, args, kwargs, values)
            smooth = sum(v for k, v in log_probs.items() if k not in self.laplace)
            nonsmooth = {}
            for name in self.laplace:
                fn = _base(trace[name]["fn"])
                term = LaplaceTerm(fn.loc, fn.scale)
                # what is left of the site's log density is its normaliser
                smooth = smooth + log_probs[name] + term.value(values[name])
                nonsmooth[name] = term
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

    def _shards(self, args, kwargs) -> tuple[Target, ...] | None:
        """One target per owner: its likelihood and an even share of the prior."""
        if not isinstance(self.original, FederatedModel):
            return None
        owners = shard_models(self.original, *args, **kwargs)
        return tuple(_shard(owner, len(owners)) for owner in owners)


def analyse(
    model: Callable,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plate: str | None = None,
) -> ModelFrontend:
    """Trace a NumPyro model once and find which parts of a `Target` it can give.

    Args:
        model: a NumPyro model, or `nutfree.federated(model)`.
        args, kwargs: its arguments.
        plate: name of the data plate, where the model has several.

    Raises:
        InvalidData: if the model cannot run on these arguments, or an observation
            does not have the shape of its distribution.
        UnsupportedModel: for a discrete latent site, by name; a model without latent
            sites.
    """
    kwargs = dict(kwargs or {})
    try:
        trace, another = (
            handlers.trace(_started(model, seed)).get_trace(*args, **kwargs)
            for seed in (0, 1)
        )
    except (TypeError, ValueError) as error:
        _check_nan(args, kwargs)
        raise InvalidData(
            f"The model cannot be run on these arguments: {error} Check the names and "
            "the shapes of the data passed to the model."
        ) from error
    params = {k: s["value"] for k, s in trace.items() if s["type"] == "param"}
    fixed = handlers.substitute(model, data=params) if params else model
    sites = {k: s for k, s in trace.items() if s["type"] == "sample"}
    latent = {k: s for k, s in sites.items() if not s["is_observed"]}
    _check_latent(latent)
    _check_shapes({k: s for k, s in sites.items() if s["is_observed"]})

    advice = {}
    supports = {k: _support(s["fn"], another[k]["fn"]) for k, s in latent.items()}
    laplace = frozenset(k for k, s in latent.items() if _is_laplace(s))
    if not laplace and all(_is_real(c) for c in supports.values()):
        advice["split"] = (
            "every latent site of this model is smooth and unbounded. Give a site a "
            "Laplace prior, dist.Laplace(0, scale), or a bounded support."
        )
    improper = [k for k, s in latent.items() if _is_improper(s["fn"])]
    if improper:
        advice["prior"] = (
            f"give the improper site '{improper[0]}' a proper distribution, for "
            "instance a wide dist.Normal."
        )
    plate, num_data, missing = _data_plate(fixed, trace, args, kwargs, plate)
    if plate is None:
        advice["minibatch"] = missing
    return ModelFrontend(
        fixed, model, supports, laplace, plate, num_data, not improper, advice
    )


def model_target(
    model: Callable,
    args: tuple = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plate: str | None = None,
    rng_key: jax.Array | None = None,
) -> Target:
    """The `Target` of a NumPyro model, with `position` set to a starting point.

    Example:
        >>> import numpyro, numpyro.distributions as dist
        >>> def model():
        ...     numpyro.sample("x", dist.HalfNormal())
        >>> target = model_target(model)
        >>> bool(target.prior is not None)
        True
    """
    frontend = analyse(model, args, kwargs, plate=plate)
    rng_key = jax.random.key(0) if rng_key is None else rng_key
    position = frontend.start(rng_key, args, kwargs)
    return replace(frontend.build(args, kwargs), position=position)


def _started(model, seed: int):
    """The model on all rows, its latent sites at a random point of their supports."""
    seeded = full_data(handlers.seed(model, seed))
    return handlers.substitute(seeded, substitute_fn=init_to_uniform)


def _check_nan(args, kwargs) -> None:
    """Say which of the data have NaN, once the model is known not to run on them."""
    named = {**{f"argument {i}": a for i, a in enumerate(args)}, **kwargs}
    for path, leaf in jax.tree_util.tree_leaves_with_path(named):
        is_array = hasattr(leaf, "dtype") and not isinstance(leaf, jax.core.Tracer)
        if is_array and leaf.dtype.kind == "f" and np.any(np.isnan(leaf)):
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            raise InvalidData(
                f"The log density is not finite: '{name}' has NaN. Drop or impute "
                "these rows, or mask them with numpyro.handlers.mask."
            )


def _base(fn):
    """The distribution inside expansions and independent dimensions."""
    while isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        fn = fn.base_dist
    return fn


def _is_laplace(site) -> bool:
    return site["scale"] is None and isinstance(_base(site["fn"]), dist.Laplace)


def _is_improper(fn) -> bool:
    return isinstance(_base(fn), dist.ImproperUniform)


def _is_real(support) -> bool:
    while isinstance(support, dist.constraints.independent):
        support = support.base_constraint
    return support is dist.constraints.real


def _support(fn, another):
    """The support, or `constraints.dependent` where its bounds depend on a site.

    The two distributions are those of one site in two traces.
    """
    for bound in ("lower_bound", "upper_bound"):
        bounds = [getattr(f.support, bound, 0.0) for f in (fn, another)]
        traced = any(isinstance(b, jax.core.Tracer) for b in bounds)
        if traced or not np.array_equal(*bounds):
            return dist.constraints.dependent
    return fn.support


def _check_latent(latent) -> None:
    if not latent:
        raise UnsupportedModel(
            "The model has no latent site. Check that numpyro.sample is called without "
            "obs= for what is to be sampled."
        )
    for name, site in latent.items():
        if site["fn"].support.is_discrete:
            raise UnsupportedModel(
                f"The latent site '{name}' is discrete ({type(site['fn']).__name__}), "
                "and these kernels need a density. Sum it out, for instance with "
                "dist.MixtureSameFamily, or sample it with "
                "numpyro.infer.DiscreteHMCGibbs."
            )


def _check_shapes(observed) -> None:
    for name, site in observed.items():
        value, shape = jnp.shape(site["value"]), tuple(site["fn"].shape())
        try:
            fits = jnp.broadcast_shapes(value, shape) in (value, shape)
        except ValueError:
            fits = False
        if not fits:
            raise InvalidData(
                f"The observed site '{name}' has data of shape {value}, but its "
                f"distribution has shape {shape}. Reshape the data, or the parameters "
                "of the distribution, so that they agree."
            )


def _in_plate(site, plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def _data_plate(model, trace, args, kwargs, wanted):
    """`(plate, num_data, advice)`: the plate whose rows can be drawn in batches."""
    plates = {k: s["args"][0] for k, s in trace.items() if s["type"] == "plate"}
    observed, local = {}, {}
    for name, site in trace.items():
        if site["type"] == "sample" and not is_jacobian(name):
            for plate in plates:
                if _in_plate(site, plate):
                    where = observed if site["is_observed"] else local
                    where.setdefault(plate, name)
    if wanted is not None and wanted not in plates:
        listed = ", ".join(repr(p) for p in plates) or "none"
        return None, 0, f"the model has no plate '{wanted}'; its plates: {listed}."
    candidates = [p for p in ([wanted] if wanted else plates) if p in observed]
    if not candidates:
        return (
            None,
            0,
            "put the observations in a plate and subsample the data there: "
            'with numpyro.plate("data", N): y = numpyro.subsample(y, event_dim=0).',
        )
    batched, advice = [], ""
    for plate in candidates:
        if plate in local:
            advice = (
                f"the site '{local[plate]}' is a latent variable of each row of plate "
                f"'{plate}', so rows cannot be left out. Integrate it out, or use a "
                "kernel that takes all rows."
            )
        elif not _subsamples(model, plate, plates[plate], args, kwargs):
            site = observed[plate]
            advice = (
                f"the plate '{plate}' has no numpyro.subsample. Inside of it write "
                f"data = numpyro.subsample(data, event_dim=0) for each array that "
                f"'{site}' is computed from, the observations too."
            )
        else:
            batched.append(plate)
    if len(batched) == 1:
        return batched[0], plates[batched[0]], ""
    if batched:
        listed = ", ".join(f'plate="{p}"' for p in batched)
        return None, 0, f"the model has several data plates; pass one of {listed}."
    return None, 0, advice


def _subsamples(model, plate, size, args, kwargs) -> bool:
    """Whether the model runs on fewer rows of the plate than there are."""
    if size < 3:
        return False
    terms = _row_terms(model, plate, size, args, kwargs)
    rows = jax.ShapeDtypeStruct((size - 1,), jnp.int32)
    try:
        jax.eval_shape(lambda indices: terms(None, indices), rows)
    except (TypeError, ValueError):
        return False
    return True


def _row_terms(model, plate, num_data, args, kwargs):
    """`terms(position, indices)` of `Minibatch`, for one plate of a model.

    A position of None stands for any: shapes only.
    """

    def terms(position, indices):
        num_rows = indices.shape[0]
        if num_rows >= num_data:
            # a plate that is not smaller than its data does not subsample them
            half = num_rows // 2
            outside, first = terms(position, indices[:half])
            return outside, jnp.concatenate([first, terms(position, indices[half:])[1]])
        batched = full_data(handlers.seed(model, 0), rows={plate: indices})
        if position is None:
            batched = handlers.substitute(batched, substitute_fn=init_to_uniform)
        else:
            batched = _unconstrain_params(batched, position)
        log_probs, trace = compute_log_probs(
            batched, args, kwargs, {}, sum_log_prob=False
        )
        outside, rows = jnp.asarray(0.0), jnp.zeros(num_rows)
        for name, log_prob in log_probs.items():
            site = trace[name]
            frames = [f for f in site["cond_indep_stack"] if f.name == plate]
            if not frames or is_jacobian(name):
                outside = outside + jnp.sum(log_prob)
                continue
            # NumPyro scales a subsampled plate by num_data / num_rows
            log_prob = jnp.broadcast_to(log_prob, site["fn"].batch_shape)
            by_row = jnp.moveaxis(log_prob, frames[0].dim, 0).reshape(num_rows, -1)
            rows = rows + jnp.sum(by_row, axis=1) * (num_rows / num_data)
        return outside, rows

    return terms


def _shard(model: Callable, num_owners: int) -> Target:
    """The target of one owner's model, whose prior counts 1 / num_owners."""
    frontend = analyse(model)
    target, prior = frontend.build(), frontend.prior_logdensity()

    def shared(position):
        return (1.0 - 1.0 / num_owners) * prior(position)

    def logdensity(position):
        return target(position) - shared(position)

    minibatch = target.minibatch
    if minibatch is not None:

        def terms(position, indices):
            outside, rows = minibatch.terms(position, indices)
            return outside - shared(position), rows

        minibatch = replace(minibatch, terms=terms)
    return Target(logdensity, minibatch=minibatch)
