import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.handlers import condition, reparam, seed, trace
from numpyro.infer import MCMC, NUTS
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density

from nutfree.errors import InvalidData, UnsupportedModel
from nutfree.frontends.federated import FederatedModel, federated, shard_models
from nutfree.frontends.numpyro import analyse


def regression(X, y=None):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    mean = numpyro.deterministic("mean", X @ beta)
    numpyro.factor("nudge", -0.1 * jnp.sum(mean**2))
    with numpyro.plate("data", X.shape[0]):
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def make_owners(sizes=(4, 7, 2)):
    rng = np.random.default_rng(0)
    return [{"X": rng.normal(size=(n, 2)), "y": rng.normal(size=n)} for n in sizes]


LATENTS = {"beta": jnp.array([0.3, -1.0]), "sigma": jnp.array(0.7)}


def log_prior():
    return dist.Normal(0, 2).log_prob(LATENTS["beta"]).sum() + dist.HalfNormal(
        1
    ).log_prob(LATENTS["sigma"])


def test_pooled_log_density_is_the_prior_once_and_every_owners_likelihood():
    owners = make_owners()
    pooled, _ = log_density(federated(regression), (owners,), {}, LATENTS)
    alone = [log_density(regression, (), owner, LATENTS)[0] for owner in owners]
    expected = sum(alone) - (len(owners) - 1) * log_prior()
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)


def test_what_an_owner_holds_is_renamed_and_latents_are_not():
    sites = trace(seed(federated(regression), 0)).get_trace(make_owners())
    owned = {f"owner{s}/{n}" for s in range(3) for n in ("y", "mean", "nudge", "data")}
    assert set(sites) == owned | {"beta", "sigma"}
    assert sites["owner1/y"]["cond_indep_stack"][0].name == "owner1/data"


def test_owners_may_be_tuples_of_arguments():
    owners = make_owners()
    tuples = [(owner["X"], owner["y"]) for owner in owners]
    values = [
        log_density(federated(regression), (given,), {}, LATENTS)[0]
        for given in (owners, tuples)
    ]
    assert values[0] == values[1]


def test_shard_models_sum_to_the_pooled_log_density():
    owners = make_owners()
    pooled, _ = log_density(federated(regression), (owners,), {}, LATENTS)
    for given in (regression, federated(regression)):
        shards = shard_models(given, owners)
        assert len(shards) == 3
        total = sum(log_density(m, (), {}, LATENTS)[0] for m in shards)
        np.testing.assert_allclose(total - 2 * log_prior(), pooled, rtol=1e-5)


def test_nuts_samples_the_pooled_posterior():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 10))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    owners = [{"y": jnp.full(5, 3.0)}, {"y": jnp.full(15, -1.0)}]
    kernel = NUTS(federated(model))
    mcmc = MCMC(kernel, num_warmup=200, num_samples=1000, progress_bar=False)
    mcmc.run(jax.random.key(0), owners)
    mu = mcmc.get_samples()["mu"]
    precision = 20 + 0.01
    # five Monte-Carlo sds at an effective sample of 200: false alarm below 1e-6
    assert abs(mu.mean() - 0.0 / precision) < 5 * precision**-0.5 / 200**0.5
    np.testing.assert_allclose(mu.std(), precision**-0.5, rtol=0.2)


def test_handlers_around_the_federated_model_see_each_latent_once():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        theta = numpyro.sample("theta", dist.Normal(mu, 2))
        numpyro.sample("y", dist.Normal(theta, 1), obs=y)

    owners = [(jnp.array(0.5),), (jnp.array(1.5),)]
    fixed = condition(federated(model), {"mu": jnp.array(0.1)})
    value, sites = log_density(fixed, (owners,), {}, {"theta": jnp.array(0.4)})
    expected = (
        dist.Normal(0, 1).log_prob(0.1)
        + dist.Normal(0.1, 2).log_prob(0.4)
        + dist.Normal(0.4, 1).log_prob(jnp.array([0.5, 1.5])).sum()
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert sites["mu"]["is_observed"]

    noncentred = reparam(federated(model), {"theta": LocScaleReparam(0.0)})
    value, _ = log_density(
        noncentred,
        (owners,),
        {},
        {"mu": jnp.array(0.1), "theta_decentered": jnp.array(0.15)},
    )
    expected = (
        dist.Normal(0, 1).log_prob(jnp.array([0.1, 0.15])).sum()
        + dist.Normal(0.4, 1).log_prob(jnp.array([0.5, 1.5])).sum()
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_a_plate_of_shared_latents_is_allowed():
    def model(group, y):
        with numpyro.plate("groups", 3):
            level = numpyro.sample("level", dist.Normal(0, 1))
        with numpyro.plate("data", len(y)):
            numpyro.sample("y", dist.Normal(level[group], 1), obs=y)

    owners = [(jnp.array([0, 1]), jnp.zeros(2)), (jnp.array([2]), jnp.ones(1))]
    sites = trace(seed(federated(model), 0)).get_trace(owners)
    assert sites["level"]["value"].shape == (3,)
    assert not sites["level"]["is_observed"]


@pytest.mark.parametrize(
    ("owners", "message"),
    [
        ([], "empty"),
        ({"y": 1.0}, "given as dict"),
        ([(jnp.ones((2, 2)), jnp.ones(2)), jnp.ones(2)], "Owner 1 is given as"),
    ],
)
def test_owners_in_the_wrong_form_are_refused(owners, message):
    with pytest.raises(InvalidData, match=message):
        seed(federated(regression), 0)(owners)


def test_owners_that_disagree_in_shape_are_refused():
    owners = [*make_owners(), {"X": jnp.ones((3, 5)), "y": jnp.ones(3)}]
    with pytest.raises(InvalidData, match=r"'beta' has shape \(5,\) for owner 3"):
        seed(federated(regression), 0)(owners)
    with pytest.raises(InvalidData, match="'beta' has shape"):
        shard_models(regression, owners)


def test_owners_that_disagree_in_latents_are_refused():
    def model(y, extra):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        if extra:
            mu = mu + numpyro.sample("shift", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    one, other = {"y": 1.0, "extra": False}, {"y": 1.0, "extra": True}
    with pytest.raises(InvalidData, match="Owner 1 has a latent site 'shift'"):
        seed(federated(model), 0)([one, other])
    with pytest.raises(InvalidData, match="Owner 1 lacks the latent site 'shift'"):
        seed(federated(model), 0)([other, one])


def test_owners_that_disagree_in_the_kind_of_prior_are_refused():
    def model(y, heavy):
        prior = dist.StudentT(3, 0, 1) if heavy else dist.Normal(0, 1)
        mu = numpyro.sample("mu", prior)
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    with pytest.raises(InvalidData, match="'mu' has prior StudentT for owner 1"):
        seed(federated(model), 0)([(1.0, False), (1.0, True)])


def test_a_latent_local_to_an_owner_is_refused_by_name():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", len(y)):
            theta = numpyro.sample("theta", dist.Normal(mu, 1))
            numpyro.sample("y", dist.Normal(theta, 1), obs=y)

    with pytest.raises(UnsupportedModel, match="'theta' lies in the plate 'rows'"):
        seed(federated(model), 0)([(jnp.ones(3),), (jnp.ones(3),)])


def test_an_owner_without_observations_is_refused():
    owners = make_owners()
    owners[1] = {"X": owners[1]["X"]}
    with pytest.raises(InvalidData, match="Owner 1"):
        seed(federated(regression), 0)(owners)


def test_the_model_of_one_owner_is_kept():
    pooled = federated(regression)
    assert isinstance(pooled, FederatedModel)
    assert pooled.model is regression


def test_targets_of_the_shards_sum_to_the_pooled_target():
    def in_batches(X, y):
        beta = numpyro.sample("beta", dist.Normal(0, 2).expand([2]).to_event(1))
        sigma = numpyro.sample("sigma", dist.HalfNormal(1))
        with numpyro.plate("data", X.shape[0]):
            rows = numpyro.subsample(X, event_dim=1)
            obs = numpyro.subsample(y, event_dim=0)
            numpyro.sample("y", dist.Normal(rows @ beta, sigma), obs=obs)

    sizes = (4, 5, 4)
    for model, in_rows in ((regression, False), (in_batches, True)):
        owners = make_owners(sizes)[0 if in_rows else 1 :]
        args = (jax.tree.map(jnp.asarray, owners),)
        target = analyse(federated(model), args).build(args)
        assert [bool(s.minibatch) for s in target.shards] == [in_rows] * len(owners)
        if in_rows:
            assert [shard.minibatch.num_data for shard in target.shards] == [*sizes]

        @jax.jit
        def values(position, target=target, in_rows=in_rows):
            alone = [shard(position) for shard in target.shards]
            batches = [
                shard.minibatch.logdensity(position, jnp.arange(size))
                for shard, size in zip(target.shards, sizes)
                if in_rows
            ]
            return target(position), alone, batches

        pooled, alone, batches = values(
            {"beta": jnp.array([0.3, -1.0]), "sigma": jnp.array(-0.4)}
        )
        np.testing.assert_allclose(sum(alone), pooled, rtol=1e-4)
        np.testing.assert_allclose(batches, alone if in_rows else [], rtol=1e-4)
