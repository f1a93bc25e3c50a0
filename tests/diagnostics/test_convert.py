"""Any NumPyro run becomes a DataTree that survives a file."""

import json
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
import xarray as xr
from numpyro.infer import AIES, HMC, MCMC, NUTS, SA, BarkerMH

import nutfree.hosts.kernel as host
from nutfree.diagnostics.convert import to_arviz

Y = np.array([0.3, -0.4, 1.2, 0.5])


def regression(y):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    numpyro.deterministic("ratio", mu / sigma)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def run(sampler, *args, num_chains=2, method="sequential", extra=(), **kwargs):
    mcmc = MCMC(
        sampler,
        num_warmup=30,
        num_samples=40,
        num_chains=num_chains,
        chain_method=method,
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), *args, extra_fields=extra, **kwargs)
    return mcmc


NUTS_FIELDS = ("num_steps", "potential_energy", "accept_prob", "adapt_state.step_size")


@pytest.fixture(scope="module")
def nuts_tree():
    mcmc = run(NUTS(regression), Y, extra=NUTS_FIELDS)
    return to_arviz(
        mcmc,
        prior=20,
        log_likelihood=True,
        attrs={"seconds": 1.5, "warmup_grad_evals": 100},
    )


@pytest.fixture(scope="module")
def mala_tree():
    return to_arviz(
        run(host.kernel("mala", regression), Y), attrs={"interrupted": True}
    )


def test_groups_and_arviz_names_of_nuts(nuts_tree):
    groups = {"posterior", "sample_stats", "observed_data", "prior", "log_likelihood"}
    assert groups <= set(nuts_tree.children)
    names = {"diverging", "lp", "n_steps", "tree_depth", "acceptance_rate", "step_size"}
    assert names <= set(nuts_tree.sample_stats.data_vars)
    assert nuts_tree.posterior.sizes == {"chain": 2, "draw": 40}
    assert nuts_tree.log_likelihood["y"].dims == ("chain", "draw", "rows")
    assert set(nuts_tree.prior.data_vars) == {"mu", "sigma", "ratio"}


def test_evaluations_of_nuts_include_warmup_where_known(nuts_tree):
    stats = nuts_tree.sample_stats
    assert stats.attrs["num_grad_evals"] == 100 + int(stats["n_steps"].sum())
    assert stats.attrs["seconds"] == 1.5
    assert stats.attrs["kernel"] == "nuts"


def test_our_kernels_report_totals_and_options():
    mcmc = run(host.kernel("mala", regression, step_size=0.1), Y, method="vectorized")
    stats = to_arviz(mcmc).sample_stats
    totals = float(np.sum(mcmc.last_state.total_grad_evals))
    assert stats.attrs["num_grad_evals"] == totals
    assert json.loads(stats.attrs["options"]) == {"step_size": 0.1}
    assert json.loads(stats.attrs["tuned"]) == {
        "step_size": pytest.approx([0.1] * mcmc.num_chains)
    }
    assert stats.attrs["kernel"] == "mala"
    assert {"num_grad_evals", "num_density_evals", "lp"} <= set(stats.data_vars)
    assert "tree_depth" not in stats


@pytest.mark.parametrize("name", ["nuts_tree", "mala_tree"])
def test_round_trip_through_netcdf(name, tmp_path, request):
    tree = request.getfixturevalue(name)
    path = tmp_path / "run.nc"
    tree.to_netcdf(path)
    with xr.open_datatree(path) as read:
        assert read.sample_stats["diverging"].dtype == bool
        xr.testing.assert_equal(read.posterior.load(), tree.posterior)
        for key, value in tree.sample_stats.attrs.items():
            assert read.sample_stats.attrs[key] == value


def test_round_trip_through_zarr(nuts_tree, tmp_path):
    nuts_tree.to_zarr(tmp_path / "run.zarr")
    with xr.open_datatree(tmp_path / "run.zarr", engine="zarr") as read:
        assert read.sample_stats.attrs["kernel"] == "nuts"


class Pair(NamedTuple):
    a: jax.Array
    b: jax.Array


POSITIONS = {
    "array": (jnp.zeros((2, 3)), {"x"}),
    "named tuple": (Pair(jnp.zeros(2), jnp.zeros((2, 3))), {"a", "b"}),
    "nested": ({"p": {"q": jnp.zeros(2)}, "r": (jnp.zeros(2),)}, {"p.q", "r.0"}),
}


@pytest.mark.parametrize("kind", POSITIONS)
def test_any_pytree_of_a_potential(kind, tmp_path):
    position, names = POSITIONS[kind]

    def potential(z):
        return 0.5 * sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(z))

    mcmc = run(HMC(potential_fn=potential), init_params=position)
    tree = to_arviz(mcmc)
    assert set(tree.posterior.data_vars) == names
    assert "observed_data" not in tree.children
    tree.to_netcdf(tmp_path / "run.nc")


@pytest.mark.slow
@pytest.mark.parametrize("sampler", [SA, BarkerMH])
def test_other_numpyro_kernels(sampler):
    tree = to_arviz(run(sampler(regression), Y))
    assert tree.sample_stats.attrs["kernel"] == sampler.__name__.lower()
    assert tree.posterior.sizes["chain"] == 2


def test_ensemble_kernels_of_numpyro():
    tree = to_arviz(run(AIES(regression), Y, num_chains=6, method="vectorized"))
    assert tree.posterior["mu"].shape == (6, 40)


def test_names_with_a_slash_and_plates_that_subsample(tmp_path):
    def model(y):
        with numpyro.handlers.scope(prefix="inner"):
            mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("rows", len(y), subsample_size=2):
            batch = numpyro.subsample(y, event_dim=0)
            numpyro.sample("y", dist.Normal(mu, 1), obs=batch)

    tree = to_arviz(run(host.kernel("nuts", model), Y), log_likelihood=True)
    assert "inner.mu" in tree.posterior
    np.testing.assert_allclose(tree.observed_data["y"], Y, rtol=1e-6)
    assert tree.log_likelihood["y"].shape == (2, 40, 4)
    tree.to_netcdf(tmp_path / "run.nc")


def test_a_plate_named_like_a_sample_dimension():
    def model():
        with numpyro.plate("draw", 3):
            numpyro.sample("x", dist.Normal())

    dims = to_arviz(run(NUTS(model))).posterior["x"].dims
    assert dims == ("chain", "draw", "draw_dim")


def test_a_run_without_draws_is_refused():
    mcmc = MCMC(NUTS(regression), num_warmup=1, num_samples=1)
    with pytest.raises(ValueError, match="no draws"):
        to_arviz(mcmc)


@pytest.fixture(scope="module")
def full_tree():
    """With all that ArviZ can ask for, of a run by `nutfree.sample`."""
    import nutfree as nf

    def model(x, y=None):
        slope = numpyro.sample("slope", dist.Normal(0, 2))
        with numpyro.plate("day", x.shape[0]):
            numpyro.sample("y", dist.Normal(slope * x, 1.0), obs=y)

    x = np.linspace(-1, 1, 8, dtype=np.float32)
    return nf.sample(
        nf.kernel("nuts", model),
        x,
        x + np.float32(0.1),
        num_warmup=50,
        num_samples=100,
        num_chains=2,
        progress_bar=False,
        coords={"day": np.arange(1, 9)},
        log_likelihood=True,
        prior=30,
        posterior_predictive=True,
        constant_data={"x": x},
        dims={"x": ["day"]},
    )


def test_plates_are_dimensions_of_every_group(full_tree):
    groups = {
        "posterior_predictive": "y",
        "prior_predictive": "y",
        "log_likelihood": "y",
        "observed_data": "y",
        "constant_data": "x",
    }
    for group, name in groups.items():
        assert full_tree[group][name].dims[-1] == "day"
        np.testing.assert_array_equal(full_tree[group]["day"], np.arange(1, 9))
    assert full_tree["log_prior"]["slope"].dims == ("chain", "draw")
    x, y = (
        full_tree[g][n] for g, n in (("constant_data", "x"), ("observed_data", "y"))
    )
    mean = full_tree["posterior"]["slope"] * x
    by_hand = -0.5 * (y - mean) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(
        full_tree["log_likelihood"]["y"],
        by_hand.transpose("chain", "draw", "day"),
        1e-4,
    )
    predicted = full_tree["posterior_predictive"]["y"] - mean
    # five standard errors of 1,600 standard normals
    assert abs(float(predicted.std()) - 1) < 5 / np.sqrt(2 * predicted.size)


@pytest.mark.parametrize(
    "what", ["loo", "plot_ppc_dist", "plot_loo_pit", "psense_summary", "plot_energy"]
)
def test_arviz_works_on_the_tree(what, full_tree):
    import arviz

    assert getattr(arviz, what)(full_tree) is not None


@pytest.mark.slow
@pytest.mark.parametrize("name", ["blackjax.nuts", "blackjax.hmc"])
def test_a_kernel_of_trajectories_keeps_its_energy(name):
    """Minus the log density of position and momentum: its mean is that of d squares of
    standard normals, halved, above the potential's; five standard errors."""
    import arviz

    import nutfree as nf

    tree = nf.sample(
        nf.kernel(name, regression),
        Y,
        num_warmup=300,
        num_samples=400,
        num_chains=2,
        progress_bar=False,
    )
    assert arviz.plot_energy(tree) is not None
    kinetic = np.asarray(tree.sample_stats["energy"] + tree.sample_stats["lp"], float)
    # two latent sites
    assert abs(kinetic.mean() - 1) < 5 / np.sqrt(kinetic.size)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [
        ("log_likelyhood", "log_likelihood"),
        ("cords", "coords"),
        ("constant_dat", "constant_data"),
        ("posterior_predicitve", "posterior_predictive"),
    ],
)
def test_a_misspelt_argument_suggests_the_nearest(wrong, near):
    import nutfree as nf

    for call in (nf.to_arviz, nf.compare, nf.sample):
        first = host.kernel("mala", regression) if call is nf.sample else regression
        with pytest.raises(nf.InvalidOption, match=f"Did you mean '{near}'"):
            call(first, **{wrong: True})
    with pytest.raises(nf.InvalidOption, match="Did you mean 'all_kernels'"):
        nf.recommend(regression, Y, all_kernel=True)


def test_a_models_argument_called_like_a_setting_is_not_swallowed():
    import nutfree as nf

    def model(y, seed=3, thinning=1):
        mean = numpyro.sample("mean", dist.Normal())
        numpyro.deterministic("seen", jnp.asarray(float(seed + thinning)) + 0 * mean)
        numpyro.sample("y", dist.Normal(mean, 1), obs=y)

    kernel = host.kernel("nuts", model)
    settings = {"num_warmup": 5, "num_samples": 5, "num_chains": 1}
    with pytest.raises(nf.InvalidOption, match=r"model_kwargs=\{'seed': ...\}"):
        nf.sample(kernel, Y, seed=100, **settings, progress_bar=False)
    with pytest.raises(nf.InvalidOption, match="given twice"):
        nf.sample(kernel, Y, model_kwargs={"seed": 1, "y": Y}, y=Y)
    with pytest.raises(nf.InvalidOption, match="in two ways"):
        nf.sample(kernel, Y, model_args=(Y,))
    tree = nf.sample(
        kernel,
        model_args=(Y,),
        model_kwargs={"seed": 40},
        **settings,
        seed=100,
        progress_bar=False,
    )
    assert float(tree["posterior"]["seen"][0, 0]) == 41
