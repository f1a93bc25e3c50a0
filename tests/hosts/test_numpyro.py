"""A registered kernel does what NumPyro's own kernels do under `MCMC`."""

import pickle
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.gibbs import DiscreteGibbs, Gibbs

import nutfree as nf
from tests.targets import regression, regression_data

pytestmark = pytest.mark.usefixtures("toys")
DATA = regression_data()


def short(kernel, **options):
    settings = {"num_warmup": 20, "num_samples": 30, "progress_bar": False} | options
    return MCMC(kernel, **settings)


@pytest.fixture(scope="module")
def mcmc(toys):
    mcmc = short(nf.kernel("toy", regression), num_chains=2, chain_method="vectorized")
    mcmc.run(jax.random.key(0), **DATA, extra_fields=("adapt_state.step_size", "i"))
    return mcmc


def test_samples_are_constrained_and_have_the_deterministic_sites(mcmc):
    samples = mcmc.get_samples(group_by_chain=True)
    assert {k: v.shape for k, v in samples.items()} == {
        "beta": (2, 30, 2),
        "sigma": (2, 30),
        "precision": (2, 30),
    }
    assert np.all(samples["sigma"] > 0)
    np.testing.assert_allclose(samples["precision"], samples["sigma"] ** -2, rtol=1e-4)


def test_fields_have_the_names_that_numpyro_and_arviz_read(mcmc):
    fields = mcmc.get_extra_fields(group_by_chain=True)
    names = {"diverging", "num_steps", "accept_prob", "potential_energy"}
    assert names | {"num_grad_evals", "adapt_state.step_size"} <= set(fields)
    assert fields["num_grad_evals"].shape == (2, 30)
    assert np.all(fields["num_grad_evals"] == 0)
    assert np.all(fields["num_density_evals"] == 1)
    # the step size stands still once warm-up is over
    assert np.ptp(fields["adapt_state.step_size"], axis=1).max() == 0
    last = mcmc.last_state
    # what the pilot and the 50 transitions have spent
    np.testing.assert_array_equal(last.total_grad_evals, 2)
    np.testing.assert_array_equal(last.total_density_evals, 3 + 50)
    assert np.all(np.isfinite(last.mean_accept_prob))


def test_summary_and_predictive_work_on_the_samples(mcmc, capsys):
    mcmc.print_summary()
    assert "sigma" in capsys.readouterr().out
    predictive = Predictive(regression, mcmc.get_samples())
    draws = predictive(jax.random.key(1), X=DATA["X"])
    assert draws["y"].shape == (60, 60)


def test_thinning_keeps_every_second_draw():
    runs = []
    for thinning in (1, 2):
        runs.append(short(nf.kernel("toy", regression), thinning=thinning))
        runs[-1].run(jax.random.key(0), **DATA)
    whole, thinned = (run.get_samples()["sigma"] for run in runs)
    np.testing.assert_allclose(thinned, whole[1::2], rtol=1e-4)


def test_init_params_is_where_the_chain_starts():
    start = {"beta": jnp.asarray([5.0, -5.0]), "sigma": jnp.asarray(1.0)}
    kernel = nf.kernel("toy", regression)
    state = kernel.init(jax.random.key(0), 0, start, (), DATA)
    np.testing.assert_array_equal(state.z["beta"], start["beta"])


def test_collected_warmup_and_legacy_keys_work():
    mcmc = short(nf.kernel("toy", regression))
    mcmc.warmup(jax.random.PRNGKey(0), **DATA, collect_warmup=True)
    assert mcmc.get_samples()["sigma"].shape == (20,)
    mcmc.run(jax.random.PRNGKey(1), **DATA)
    assert mcmc.get_samples()["sigma"].shape == (30,)


def test_jit_model_args_runs_other_data_of_the_same_shape():
    mcmc = short(nf.kernel("toy", centred), jit_model_args=True)
    means = []
    for level in (0.0, 5.0):
        mcmc.run(jax.random.key(0), jnp.full(50, level))
        means.append(float(np.mean(mcmc.get_samples()["mu"])))
    assert means[1] - means[0] > 4


def centred(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    with numpyro.plate("data", y.shape[0]):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def test_potential_fn_takes_the_place_of_a_model():
    mcmc = short(nf.kernel("toy", potential_fn=lambda z: 0.5 * jnp.sum(z["x"] ** 2)))
    mcmc.run(jax.random.key(0), init_params={"x": jnp.ones(3)})
    assert mcmc.get_samples()["x"].shape == (30, 3)


def test_potential_fn_without_a_start_says_what_to_pass():
    mcmc = short(nf.kernel("toy", potential_fn=lambda x: x**2))
    with pytest.raises(nf.NoFiniteStart, match="init_params"):
        mcmc.run(jax.random.key(0))


def test_a_start_that_is_not_finite_is_refused():
    mcmc = short(nf.kernel("toy", potential_fn=lambda x: -jnp.log(x)))
    with pytest.raises(nf.NoFiniteStart, match="not finite at the starting point"):
        mcmc.run(jax.random.key(0), init_params=jnp.asarray(-1.0))


def test_model_and_potential_together_are_refused():
    with pytest.raises(nf.InvalidOption, match="either a model or potential_fn"):
        nf.kernel("toy", regression, potential_fn=lambda x: x)
    with pytest.raises(nf.InvalidOption, match="either a model or potential_fn"):
        nf.kernel("toy", step_size=0.1)


def test_a_name_alone_is_to_look_at():
    alone = nf.kernel("toy")
    assert "step_size" in alone.options.index
    assert 'nutfree.kernel("toy", model)' in repr(alone)
    with pytest.raises(nf.InvalidOption, match="has no model"):
        nf.sample(alone)
    kernel = nf.kernel("toy", regression, step_size=0.1)
    assert repr(kernel) == 'nutfree.kernel("toy", regression, step_size=0.1)'
    assert {"mala", "compare", "multiscale"} <= set(dir(nf))


def test_kernels_and_runs_pickle_and_go_on():
    kernel = nf.kernel("toy", regression, step_size=0.1)
    mcmc = short(kernel, num_chains=2, chain_method="vectorized")
    mcmc.post_warmup_state = mcmc.last_state
    copied = pickle.loads(pickle.dumps(mcmc))
    for run in (mcmc, copied):
        run.run(jax.random.key(1), **DATA)
    first, second = (run.get_samples()["beta"] for run in (mcmc, copied))
    np.testing.assert_array_equal(first, second)
    potential = pickle.loads(pickle.dumps(nf.kernel("toy", potential_fn=_square)))
    assert repr(potential) == 'nutfree.kernel("toy", _square)'
    assert float(potential.target()(2.0)) == -4.0


def _square(x):
    return x**2


def test_one_kernel_runs_in_several_threads():
    kernel = nf.kernel("toy", regression)

    def drawn(seed):
        tree = nf.sample(
            kernel,
            **DATA,
            num_warmup=5,
            num_samples=10,
            num_chains=1,
            seed=seed,
            progress_bar=False,
        )
        return tree["posterior"]["beta"].values

    alone = [drawn(seed) for seed in range(4)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(drawn, range(4)))
    np.testing.assert_array_equal(alone, together)


def test_missing_capability_names_the_kernel_the_part_and_the_line_to_write():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal())
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    with pytest.raises(nf.MissingCapability) as caught:
        short(nf.kernel("sgld", model)).run(jax.random.key(0), jnp.ones(5))
    for word in ("'sgld'", "'minibatch'", "numpyro.subsample", "numpyro.plate"):
        assert word in str(caught.value)
    with pytest.raises(nf.MissingCapability, match=r"nutfree\.federated\(model\)"):
        short(nf.kernel("federated", model)).run(jax.random.key(0), jnp.ones(5))
    # from a density, already when the kernel is built
    with pytest.raises(nf.MissingCapability, match="'sgld' needs"):
        nf.kernel("sgld", potential_fn=lambda x: x**2)


def test_a_fixed_option_is_kept_through_warmup():
    mcmc = short(nf.kernel("toy", regression, step_size=0.123))
    mcmc.run(jax.random.key(0), **DATA)
    assert float(mcmc.last_state.adapt_state.step_size) == pytest.approx(0.123)


def test_nuts_by_name_is_numpyros_own_on_all_rows():
    kernel = nf.kernel("nuts", regression, target_accept_prob=0.9)
    assert isinstance(kernel, NUTS)
    mcmc = short(kernel)
    mcmc.run(jax.random.key(0), **DATA, batch_size=10)
    whole = short(NUTS(regression))
    whole.run(jax.random.key(0), **DATA)
    mean = [np.mean(m.get_samples()["beta"], axis=0) for m in (mcmc, whole)]
    np.testing.assert_allclose(mean[0], mean[1], atol=0.2)


def test_kernel_is_a_block_of_gibbs_beside_a_discrete_site():
    """Two well separated components: each row's label is known, and the means too."""
    y = jnp.concatenate([jnp.full(20, -3.0), jnp.full(20, 3.0)])
    y = y + 0.1 * jax.random.normal(jax.random.key(0), (40,))

    def mixture(y):
        loc = numpyro.sample("loc", dist.Normal(jnp.asarray([-2.0, 2.0]), 2.0))
        with numpyro.plate("data", 40):
            label = numpyro.sample("label", dist.Bernoulli(0.5))
            numpyro.sample("y", dist.Normal(loc[label], 1.0), obs=y)

    kernel = Gibbs(
        [(DiscreteGibbs(mixture), ["label"]), (nf.kernel("toy", mixture), None)]
    )
    mcmc = short(kernel, num_warmup=150, num_samples=150)
    mcmc.run(jax.random.key(1), y)
    loc = np.mean(mcmc.get_samples()["loc"], axis=0)
    np.testing.assert_allclose(loc, [-3.0, 3.0], atol=0.3)
