import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import models
import nutfree as nf
from nutfree import registry
from nutfree.kernels.sgld.structured import group_of_coordinates
from nutfree.target import Minibatch, Target

sgld, ssgmcmc = registry.get("sgld"), registry.get("ssgmcmc")
# groups "a" (two coordinates) and "b" (one), all correlated
PRECISION = np.array([[2.0, 0.6, 0.9], [0.6, 1.5, -0.5], [0.9, -0.5, 1.2]])
SAME = np.array([[1, 1, 0], [1, 1, 0], [0, 0, 1]], bool)


def gaussian():
    matrix = jnp.asarray(PRECISION)

    def terms(position, indices):
        x = jnp.concatenate([position["a"], position["b"][None]])
        return 0.0 * x[0], -0.25 * x @ matrix @ x + 0.0 * indices

    position = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    return Target(lambda x: 0.0, position=position, minibatch=Minibatch(2, terms))


@pytest.mark.slow
@pytest.mark.optimised
@pytest.mark.parametrize("dropout", [pytest.param(None, marks=pytest.mark.slow), 0.5])
def test_the_law_has_the_precision_without_the_blocks_between_groups(dropout):
    target = gaussian()
    kernel = ssgmcmc.build_kernel(ssgmcmc.options(batch_size=2, dropout=dropout))
    params = {"step_size": 0.04, "num_steps": 40}

    def one(key):
        state = ssgmcmc.init(target.position, target)

        def body(state, key):
            state, info = kernel(key, state, target, **params)
            x = jnp.append(state.position["a"], state.position["b"])
            return state, (x, info.num_grad_evals)

        keys = jax.random.split(key, 1200)
        return jax.lax.scan(body, state, keys)[1]

    keys = jax.random.split(jax.random.key(0), 40)
    draws, counts = jax.jit(jax.vmap(one))(keys)
    # one gradient per group and step, or one in all
    stated = ssgmcmc.gradients(
        ssgmcmc.options(batch_size=2, dropout=dropout), params, target
    )
    assert jnp.all(counts == (80 if dropout is None else 40))
    assert jnp.all(counts == stated)
    between = 0.0 if dropout is None else 1 - dropout
    expected = np.linalg.inv(np.where(SAME, 1.0, between) * PRECISION)
    posterior = np.linalg.inv(PRECISION)
    got = np.cov(np.asarray(draws[:, 300:]).reshape(-1, 3).T)
    # some 10,000 independent draws, and the step's and a finite past's own few percent
    np.testing.assert_allclose(got, expected, atol=0.1 * expected.max())
    # what the posterior has is another law
    assert np.diag(got).max() < 0.8 * np.diag(posterior).max()


def test_groups_are_the_keys_of_a_dict_or_the_leaves_of_another_tree():
    sites = {"w": (jnp.ones(2), jnp.ones((1, 2))), "b": jnp.ones(())}
    assert group_of_coordinates(sites).tolist() == [0, 1, 1, 1, 1]
    assert group_of_coordinates((jnp.ones(2), jnp.ones(1))).tolist() == [0, 0, 1]
    assert group_of_coordinates(jnp.ones(3)).tolist() == [0, 0, 0]


def test_one_group_alone_is_sgld():
    def terms(x, indices):
        return 0.0 * x[0], -0.25 * jnp.sum(x**2) + 0.0 * indices

    target = Target(lambda x: 0.0, minibatch=Minibatch(2, terms))
    draws = []
    for spec in (ssgmcmc, sgld):
        options = spec.options(batch_size=2, gradient="plain")
        kernel = spec.build_kernel(options)
        state = spec.init(jnp.ones(2), target, options=options)
        draws.append(kernel(jax.random.key(0), state, target, step_size=0.1)[0])
    np.testing.assert_allclose(draws[0].position, draws[1].position, rtol=1e-5)


def network(X, y=None, num_hidden=5):
    """The zoo's network of the wines, with rows that can be drawn."""

    def normal(name, *shape, fan_in=1):
        prior = dist.Normal(0, fan_in**-0.5).expand(shape).to_event(len(shape))
        return numpyro.sample(name, prior)

    w1 = normal("w1", X.shape[1], num_hidden, fan_in=X.shape[1])
    b1 = normal("b1", num_hidden)
    w2 = normal("w2", num_hidden, 3, fan_in=num_hidden / 9)
    b2 = normal("b2", 3)
    with numpyro.plate("wines", X.shape[0]):
        rows = numpyro.subsample(X, event_dim=1)
        labels = None if y is None else numpyro.subsample(y, event_dim=0)
        logits = numpyro.deterministic("logits", jnp.tanh(rows @ w1 + b1) @ w2 + b2)
        numpyro.sample("y", dist.Categorical(logits=logits), obs=labels)


@pytest.mark.slow
@pytest.mark.parametrize("dropout", [None, 0.5])
def test_a_networks_predictions_are_nearly_those_of_nuts(dropout):
    data = models.load("bnn").data()
    held = np.arange(len(data["y"])) % 3 == 0
    X, y = data["X"][~held].astype(np.float32), data["y"][~held]

    def score(draws):
        hidden = jnp.tanh(
            jnp.einsum("nf,sfh->snh", data["X"][held], draws["w1"])
            + draws["b1"][:, None]
        )
        logits = jnp.einsum("snh,shc->snc", hidden, draws["w2"]) + draws["b2"][:, None]
        mean = jnp.mean(jax.nn.softmax(logits), axis=0)
        return float(jnp.mean(jnp.log(mean[jnp.arange(held.sum()), data["y"][held]])))

    def draws(kernel):
        mcmc = MCMC(kernel, num_warmup=100, num_samples=300, progress_bar=False)
        mcmc.run(jax.random.key(0), X, y)
        return mcmc.get_samples()

    structured = nf.kernel("ssgmcmc", network, batch_size=40, dropout=dropout)
    ours, reference = score(draws(structured)), score(draws(nf.kernel("nuts", network)))
    # mean log scores of 60 held-out wines; guessing has -1.1
    assert ours > reference - 0.1
