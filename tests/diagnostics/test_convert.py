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

import nutfree.hosts.numpyro as host
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
        mcmc, prior=20, log_likelihood=True, seconds=1.5, warmup_grad_evals=100
    )


@pytest.fixture(scope="module")
def mala_tree():
    return to_arviz(run(host.kernel("mala", regression), Y), interrupted=True)


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
