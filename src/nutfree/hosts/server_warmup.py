"""The warm-up of a federated run: mode, surrogates and step from owners' messages."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.errors import InvalidData
from nutfree.hosts.owner import template
from nutfree.hosts.wire import Sent
from nutfree.kernels.federated.family import rounds_to_forget
from nutfree.kernels.federated.federation import (
    Chain,
    Expansion,
    Surrogate,
    pool,
    surrogate_from,
)
from nutfree.kernels.federated.privacy import Ledger, step_bound
from nutfree.kernels.federated.rounds import (
    pooled_expansion,
    whitened_variance,
)
from nutfree.kernels.federated.search import (
    MAX_MESSAGES,
    MAX_PRIVATE_MESSAGES,
    NO_MODE,
    begin,
    update,
)
from nutfree.kernels.federated.warmup import NUM_DRAWS, plausible
from nutfree.numerics.langevin import (
    predicted_inflation,
    step_for_inflation,
)
from nutfree.numerics.laplace import DENSE_DIM, inverse, positive
from nutfree.numerics.preconditioning import matvec, root, transpose

#: How far from zero the search for the mode begins, on the sampling space.
START = 0.1


def warm_up(server: Any):
    dim = sum(leaf.size for leaf in template(server.members.template).values())
    key = jax.random.fold_in(jax.random.key(server.run.seed), 0)
    fit_key, noise_key, start_key, x_key = jax.random.split(key, 4)
    shares = jnp.asarray(server.members.shares)
    private = server.scheme.privacy is not None
    most = MAX_PRIVATE_MESSAGES if private else MAX_MESSAGES
    server.ledgers = [Ledger()] * server.members.count

    def ask(centre, number):
        each, there = expansions(server, centre, jax.random.fold_in(fit_key, number))
        if server.scheme.privacy is not None:
            privacy = server.scheme.privacy
            server.ledgers = [own.expansion(privacy) for own in server.ledgers]
        return each, there

    # zero can be a saddle, such as a network's
    x = START * jax.random.normal(x_key, (dim,))
    each, there = ask(x, 0)
    counted = jnp.asarray(there) & plausible(each, shares)
    for s, (answered, good) in enumerate(zip(there, np.asarray(counted))):
        if answered and not good:
            server.leave_out(server.members.names[s], "its derivatives make no sense")
    if not np.any(counted):
        raise InvalidData(
            "No owner has sent a curvature. "
            + " ".join(f"{k}: {v}" for k, v in server.why.items())
        )
    search = begin(x, pooled_expansion(each, counted), each, most)
    while not bool(search.found):
        each, there = ask(search.proposal, int(search.sent))
        if not all(there[s] for s in np.flatnonzero(counted)):
            # one that has gone while the mode is sought is not waited for
            counted = counted & jnp.asarray(there)
        search = update(search, pooled_expansion(each, counted), each, most)
    if int(search.sent) >= MAX_MESSAGES:
        server.log(NO_MODE)
    centre = search.centre
    surrogates = jax.vmap(lambda e: surrogate_from(e, centre))(search.kept)

    def only(leaf):
        return jnp.where(counted.reshape(-1, *([1] * (leaf.ndim - 1))), leaf, 0)

    surrogates = Surrogate(
        surrogates.centre, only(surrogates.gradient), only(surrogates.precision)
    )
    pooled = pool(surrogates)
    covariance = inverse(positive(pooled.precision))
    factor = root(covariance)
    best = centre + matvec(covariance, pooled.gradient)

    def draw(key):
        return best + matvec(factor, jax.random.normal(key, (dim,)))

    setting = {"factor": factor, "surrogates": surrogates}
    noise = jnp.zeros(())
    if not server.scheme.everybody and not private:
        points = jax.vmap(draw)(jax.random.split(noise_key, NUM_DRAWS))
        noise = noise_of(server, points, setting)
    if private:
        if server.members.num_rows is None:
            raise InvalidData("To clip, every owner's number of rows is needed.")
        assert server.scheme.privacy is not None
        rows, step_clip = sum(server.members.num_rows), server.scheme.privacy.step_clip
        setting["bound"] = step_bound(dim, rows, step_clip)
    h = getattr(server.options, "step_size", None)
    if h is None:
        K = server.scheme.num_local_steps
        h = min(
            float(step_for_inflation(server.options.max_inflation, noise, 1.0)), 2 / K
        )
    num_rounds = server.options.num_rounds
    if num_rounds is None:
        num_rounds = int(rounds_to_forget(h, server.scheme.num_local_steps))
    numbers = {
        "step_size": np.float32(h),
        "num_rounds": int(num_rounds),
        "gradient_noise": np.float32(noise),
        "predicted_inflation": np.float32(predicted_inflation(h, noise, 1.0)),
        "search_messages": int(search.sent),
    }
    starts = jax.vmap(draw)(jax.random.split(start_key, server.run.num_chains))
    trusted = jnp.ones((server.members.count, server.run.num_chains), bool)
    return setting, numbers, (Chain(starts, starts), trusted)


def expansions(server: Any, centre, key) -> tuple[Expansion, list[bool]]:
    names, dim = server.members.names, centre.size
    keys = jax.vmap(jax.random.key_data)(jax.random.split(key, len(names)))
    sent = [
        Sent(name, {"centre": np.asarray(centre), "key": np.asarray(k)}, server.told())
        for name, k in zip(names, keys)
    ]
    curved = (dim, dim) if dim <= DENSE_DIM else (dim,)
    shapes = {"value": (), "gradient": (dim,), "precision": curved}
    there, each = [], []
    for name, answer in zip(names, server.post("expand", sent)):
        found = server.checked(name, answer, shapes)
        there.append(found is not None)
        empty = {k: np.zeros(shape, np.float32) for k, shape in shapes.items()}
        each.append(Expansion(**(found or empty)))
    return jax.tree.map(lambda *a: jnp.stack([*map(jnp.asarray, a)]), *each), there


def noise_of(server: Any, points, setting) -> jax.Array:
    sent = [
        Sent(name, {"points": np.asarray(points)}, server.told())
        for name in server.members.names
    ]
    each = []
    for name, answer in zip(server.members.names, server.post("measure", sent)):
        found = server.checked(name, answer, {"gradients": points.shape})
        each.append(np.zeros(points.shape) if found is None else found["gradients"])
    factor, surrogates = setting["factor"], setting["surrogates"]
    excess = jnp.asarray(np.stack(each))
    if server.scheme.conducive:
        centred = points[None] - surrogates.centre[:, None]
        each_owner = jax.vmap(jax.vmap(matvec, (None, 0)))
        linear = each_owner(surrogates.precision, centred)
        excess = excess - (surrogates.gradient[:, None] - linear)
    whitened = jax.vmap(jax.vmap(lambda g: matvec(transpose(factor), g)))(excess)
    return whitened_variance(server.scheme, whitened)
