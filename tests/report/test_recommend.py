"""What `recommend` says of models with one difficulty each, and that it is true."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.reparam import LocScaleReparam

import nutfree as nf
from nutfree import facts, registry
from nutfree.frontends.hierarchy import centred_sites
from nutfree.kernels.langevin import mala
from tests.report.runs import bimodal


def smooth():
    numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
    numpyro.sample("scale", dist.HalfNormal(1))


def rows_of(model, *args, **kwargs):
    return nf.recommend(model, *args, all_kernels=True, **kwargs).set_index("kernel")


def test_where_nothing_speaks_against_nuts_it_comes_first_and_five_are_shown():
    table = nf.recommend(smooth)
    assert table["kernel"][0] == "nuts"
    assert "nothing speaks against it" in table["why"][0]
    assert len(table) == 5
    assert table["fits"].all()


def test_what_does_not_fit_says_what_it_lacks():
    table = rows_of(smooth)
    assert len(table) == len(nf.kernels())
    assert not table.loc["blackjax.sgld", "fits"]
    assert "plate" in table.loc["blackjax.sgld", "needs_missing"]
    assert not table.loc["fsgld", "fits"]
    assert "owners" not in table.loc["fsgld", "why"]
    assert "Gaussian prior" in table.loc["blackjax.elliptical_slice", "why"]
    assert not table.loc["blackjax.elliptical_slice", "fits"]


@pytest.mark.slow
def test_a_gaussian_prior_lets_the_elliptical_slice_fit():
    def model():
        numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))

    assert rows_of(model).loc["blackjax.elliptical_slice", "fits"]


def test_separate_modes_are_seen_and_only_kernels_that_move_between_them_are_praised():
    other = replace(mala.SPEC, name="mymala", family="mine", recommended=True)
    other = replace(other, suits=registry.KernelSpec.suits)
    nf.register(other)
    try:
        table = rows_of(bimodal)
    finally:
        registry._registered.pop("mymala")
    assert "2 separate modes" in table.loc["nuts", "why"]
    assert table.index[0] == "multiscale"
    assert "modes" not in table.loc["mymala", "why"]
    assert list(table.index).index("mymala") > list(table.index).index("nuts")


def total_variation():
    x = numpyro.sample("x", dist.Normal(0, 1).expand([5]).to_event(1))
    numpyro.factor("tv", -10 * jnp.sum(jnp.abs(jnp.diff(x))))


def laplace_likelihood():
    a = numpyro.sample("a", dist.Normal(0, 1))
    s = numpyro.sample("s", dist.HalfNormal(1))
    y = jnp.linspace(-1.0, 1.0, 7)
    numpyro.sample("y", dist.Laplace(a, s).expand([7]).to_event(1), obs=y)


def quantile_likelihood():
    a = numpyro.sample("a", dist.Normal(0, 1))
    y = jnp.linspace(-1.0, 1.0, 7)
    fn = dist.AsymmetricLaplaceQuantile(a, 1.0, 0.3)
    numpyro.sample("y", fn.expand([7]).to_event(1), obs=y)


def asymmetric_prior():
    numpyro.sample("a", dist.AsymmetricLaplace(0.0, 1.0, 0.7))


def scaled_laplace():
    with handlers.scale(scale=2.0):
        numpyro.sample("a", dist.Laplace(0, 1))


def masked_laplace():
    with handlers.mask(mask=True):
        numpyro.sample("a", dist.Laplace(0, 1))


@pytest.mark.parametrize(
    ("model", "site"),
    [
        pytest.param(total_variation, "x", marks=pytest.mark.slow),
        *(
            pytest.param(model, "a", marks=pytest.mark.slow)
            for model in (
                laplace_likelihood,
                quantile_likelihood,
                asymmetric_prior,
                scaled_laplace,
                masked_laplace,
            )
        ),
    ],
)
def test_kinks_are_seen_wherever_they_are_written(model, site):
    why = rows_of(model).loc["nuts", "why"]
    assert f"not smooth in {site}" in why
    assert "nothing speaks against" not in why


@pytest.mark.slow
def test_a_jump_is_seen():
    t = np.linspace(0.025, 0.975, 20)

    def model(y):
        tau = numpyro.sample("tau", dist.Uniform(0, 1))
        a = numpyro.sample("a", dist.Normal(0, 2))
        mean = jnp.where(t < tau, a, 0.0)
        numpyro.sample("y", dist.Normal(mean, 0.7).to_event(1), obs=y)

    assert "jumps" in rows_of(model, np.where(t < 0.4, 1.0, 0.0)).loc["nuts", "why"]


def line(x, y):
    a = numpyro.sample("a", dist.Normal(0, 100))
    b = numpyro.sample("b", dist.Normal(0, 1))
    s = numpyro.sample("s", dist.HalfNormal(5))
    numpyro.sample("y", dist.Normal(a + b * x, s).to_event(1), obs=y)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_a_ridge_is_one_mode(seed):
    """An uncentred regression on years: descents end apart, and none has arrived."""
    x = np.arange(1950.0, 2012.0)
    noise = np.random.default_rng(seed).normal(size=x.size)
    y = 9.3 + 0.02 * (x - 1981) + noise
    assert "separate modes, of which" not in rows_of(line, x, y).loc["nuts", "why"]


def eight_schools():
    sigma = jnp.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    y = jnp.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", 8):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("obs", dist.Normal(theta, sigma), obs=y)


def test_sites_whose_scale_is_another_site_are_found_and_told():
    assert centred_sites(eight_schools) == (("theta", "tau"),)
    other = handlers.reparam(eight_schools, config={"theta": LocScaleReparam(0)})
    assert centred_sites(other) == ()
    fit = facts.smooth(facts.Facts(dim=10, centred=(("theta", "tau"),)))
    assert "'theta' is centred on its scale 'tau'" in fit.why


@pytest.mark.slow
def test_a_centred_hierarchy_is_seen_and_the_other_form_named():
    why = rows_of(eight_schools).loc["nuts", "why"]
    assert "'theta' is centred on its scale 'tau'" in why
    assert "config={'theta': LocScaleReparam(0)}" in why
    other = handlers.reparam(eight_schools, config={"theta": LocScaleReparam(0)})
    assert "centred" not in rows_of(other).loc["nuts", "why"]


@pytest.mark.slow
def test_a_model_without_a_gradient_is_probed_by_values():
    def model():
        x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        cost = jax.pure_callback(
            lambda v: np.asarray(0.5 * np.sum(v**2), np.float32),
            jax.ShapeDtypeStruct((), jnp.float32),
            x,
            vmap_method="sequential",
        )
        numpyro.factor("cost", -cost)

    table = nf.recommend(model)
    assert table["kernel"][0] == "ensemble"
    assert table["why"][0] == "needs no gradient, and there is none"
    nuts = rows_of(model).loc["nuts"]
    assert not nuts["fits"]
