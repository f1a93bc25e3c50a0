"""Posteriors of several owners whose moments are known, shared by federated tests."""

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.target import Minibatch, Target


def shard_of(num_data, terms, num_owners):
    """A shard from `terms(x, rows) -> (log prior, log likelihoods)`."""

    def shared(x, indices):
        prior, rows = terms(x, indices)
        return prior / num_owners, rows

    minibatch = Minibatch(num_data, shared)

    def logdensity(x):
        return minibatch.logdensity(x, jnp.arange(num_data))

    return Target(logdensity, minibatch=minibatch)


def pooled_target(shards, dim):
    return Target(
        lambda x: sum(shard(x) for shard in shards),
        position=jnp.zeros(dim),
        shards=tuple(shards),
    )


def gaussian_owners():
    """Owners who disagree by ten and more posterior sds; the exact pooled posterior."""
    rng = np.random.default_rng(0)
    sizes, centres = (30, 10, 60), ((-2.0, 1.0), (3.0, 0.0), (0.0, -2.0))
    scales = ((1.0, 0.5), (0.3, 1.0), (2.0, 1.0))
    precision, shift, shards = np.eye(2) / 100, np.zeros(2), []
    for size, centre, scale in zip(sizes, centres, scales):
        y = rng.normal(centre, scale, size=(size, 2))
        rows, weights = jnp.asarray(y), 1 / np.square(scale)
        precision += size * np.diag(weights)
        shift += weights * y.sum(axis=0)

        def terms(x, indices, rows=rows, scale=scale):
            residual = ((rows[indices] - x) / jnp.asarray(scale)) ** 2
            return -jnp.sum(x**2) / 200, -0.5 * jnp.sum(residual, axis=1)

        shards.append(shard_of(size, terms, 3))
    covariance = np.linalg.inv(precision)
    return pooled_target(shards, 2), covariance @ shift, covariance


def logistic_owners():
    """Owners whose features differ; moments of the pooled posterior by quadrature."""
    rng = np.random.default_rng(1)
    truth, parts, shards = np.array([-1.0, 1.0]), [], []
    for size, centre in ((400, -1.5), (100, 0.0), (250, 1.5)):
        X = np.column_stack([np.ones(size), rng.normal(centre, 0.5, size)])
        y = rng.uniform(size=size) < 1 / (1 + np.exp(-X @ truth))
        parts.append((X, y))

        def terms(x, indices, X=X, y=y):
            logits = jnp.asarray(X)[indices] @ x
            rows = jnp.asarray(y)[indices] * logits - jax.nn.softplus(logits)
            return -jnp.sum(x**2) / 8, rows

        shards.append(shard_of(size, terms, 3))
    X, y = (np.concatenate(arrays) for arrays in zip(*parts))
    mean, sd = quadrature(X, y, truth, 0.7)
    return pooled_target(shards, 2), mean, sd


def quadrature(X, y, centre, width):
    """Mean and sds of a logistic posterior of two coordinates, within a square."""
    axis = np.linspace(-width, width, 141)
    points = centre + np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    logits = points @ X.T
    value = -np.sum(points**2, 1) / 8 + logits @ y - np.logaddexp(0, logits).sum(1)
    weight = np.exp(value - value.max())
    weight /= weight.sum()
    mean = weight @ points
    return mean, np.sqrt(weight @ (points - mean) ** 2)


def label_split_owners(seed=2, num_owners=10, rows=2000, bounded=False):
    """Logistic rows sorted by their label, cut into owners of unequal sizes.

    Moments of the pooled posterior, in two coordinates, by quadrature.
    """
    rng = np.random.default_rng(seed)
    truth, parts, shards = np.array([-0.3, 0.8]), [], []
    x = rng.uniform(-1, 1, rows) if bounded else rng.normal(0, 1, rows)
    X = np.column_stack([np.ones(rows), x])
    y = rng.uniform(size=rows) < 1 / (1 + np.exp(-X @ truth))
    # most of an owner's rows have one label
    order = np.argsort(y + rng.normal(0, 0.3, rows))
    X, y = X[order], y[order]
    shares = np.linspace(0.5, 1.5, num_owners) / num_owners
    cuts = np.round(np.cumsum(shares) * rows).astype(int)[:-1]
    parts = list(zip(np.split(X, cuts), np.split(y, cuts)))
    for X_s, y_s in parts:

        def terms(x, indices, X=X_s, y=y_s):
            logits = jnp.asarray(X)[indices] @ x
            rows = jnp.asarray(y)[indices] * logits - jax.nn.softplus(logits)
            return -jnp.sum(x**2) / 8, rows

        shards.append(shard_of(len(X_s), terms, num_owners))
    mean, sd = quadrature(X, y, truth, 0.3)
    return pooled_target(shards, 2), mean, sd
