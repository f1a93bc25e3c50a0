"""The plate whose rows can be drawn in batches, and the log density row by row."""

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.infer.initialization import init_to_uniform
from numpyro.infer.util import _unconstrain_params, compute_log_probs

from nutfree.frontends.handlers import full_data, is_jacobian
from nutfree.numerics.programs import jitted


def _in_plate(site, plate: str) -> bool:
    return any(frame.name == plate for frame in site["cond_indep_stack"])


def data_plate(model, trace, args, kwargs, wanted):
    """Find the plate whose rows can be drawn in batches.

    Returns:
        `(plate, num_data, advice)`; without such a plate `(None, 0, advice)`.
    """
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
        elif plates[plate] < 3:
            advice = (
                f"the plate '{plate}' has {plates[plate]} of the 3 rows that a batch "
                "takes at least. Pass more data, or use a kernel that takes all rows."
            )
        elif not _subsamples(model, plate, plates[plate], args, kwargs):
            site = observed[plate]
            advice = (
                f"the plate '{plate}' has no numpyro.subsample. Inside of it write "
                f"data = numpyro.subsample(data, event_dim=0) for each array that "
                f"'{site}' is computed from, the observations too."
            )
        elif not _rows_stand_alone(model, plate, plates[plate], args, kwargs):
            advice = (
                f"in the plate '{plate}' the log density of a row depends on the other "
                "rows of its batch. Compute what is of all rows, such as a mean, "
                "outside of the plate, from the data as they are passed."
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
    """Say whether the model runs on fewer rows of the plate than there are."""
    terms = row_terms(model, plate, size, args, kwargs)
    rows = jax.ShapeDtypeStruct((size - 1,), jnp.int32)
    try:
        jax.eval_shape(lambda indices: terms(None, indices), rows)
    except (TypeError, ValueError):
        return False
    return True


def _rows_stand_alone(model, plate, size, args, kwargs) -> bool:
    """Say whether a row, and all outside of the plate, is the same in two batches."""
    terms = row_terms(model, plate, size, args, kwargs)

    def first(other: int):
        outside, rows = terms(None, jnp.asarray([0, other]))
        return jnp.stack([outside, rows[0]])

    one, another = jitted(lambda: (first(1), first(size - 1)))()
    if isinstance(one, jax.core.Tracer):
        return True
    # NaN in the data has a message of its own
    return bool(jnp.allclose(one, another, rtol=1e-3, atol=1e-4, equal_nan=True))


def row_terms(model, plate, num_data, args, kwargs):
    """Return the `terms(position, indices)` of `Minibatch`, for one plate of a model.

    A position of None is one at random, for code that asks for shapes alone. Indices
    of None are all rows in their order.
    """

    def terms(position, indices):
        num_rows = num_data if indices is None else indices.shape[0]
        if indices is not None and num_rows >= num_data:
            # a plate that is not smaller than its data does not subsample them
            half = num_rows // 2
            outside, first = terms(position, indices[:half])
            return outside, jnp.concatenate([first, terms(position, indices[half:])[1]])
        rows = None if indices is None else {plate: indices}
        batched = full_data(handlers.seed(model, 0), rows=rows)
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
