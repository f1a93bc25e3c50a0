"""Every model of the zoo is ready to run: data, shapes, density, gradient, prior."""

import functools
import subprocess
import sys
from itertools import permutations

import jax
import numpy as np
import pytest
from numpyro.handlers import seed, trace
from numpyro.infer.util import log_density, potential_energy, unconstrain_fn
from scipy.stats import dirichlet, multivariate_normal

import models

# Sites that are sampled, with their shapes, and the dimension of the sampling space
SITES = {
    "adult": (44, {"intercept": (), "beta": (43,)}),
    "bnn": (88, {"w1": (13, 5), "b1": (5,), "w2": (5, 3), "b2": (3,)}),
    "eight_schools": (10, {"mu": (), "tau": (), "theta_decentered": (8,)}),
    "galaxies": (8, {"weights": (3,), "mu": (3,), "sigma": (3,)}),
    "gaussian_mixture_40": (2, {"x": (2,)}),
    "german": (98, {"intercept": (), "tau": (), "lambda": (48,), "z": (48,)}),
    "grunfeld": (40, {"mean": (3,), "scale": (3,), "beta": (11, 3), "sigma": ()}),
    "ionosphere": (34, {"intercept": (), "beta": (33,)}),
    "lasso_diabetes": (11, {"beta": (10,), "sigma": ()}),
    "picture": (4096, {"x": (64, 64)}),
    "lotka_volterra": (8, {"first": (2,), "rates": (4,), "sigma": (2,)}),
    "lotka_volterra_scipy": (8, {"first": (2,), "rates": (4,), "sigma": (2,)}),
    "positive_regression": (51, {"beta": (50,), "sigma": ()}),
    "robust_regression": (6, {"intercept": (), "beta": (3,), "sigma": (), "nu": ()}),
    "simplex_regression": (8, {"weights": (8,), "sigma": ()}),
    "sonar": (61, {"intercept": (), "beta": (60,)}),
    "source_location": (3, {"place": (2,), "strength": ()}),
    "sparse_dirichlet": (41, {"share": (42,)}),
    "theophylline": (4, {"clearance": (), "volume": (), "faster": (), "sigma": ()}),
}
# Those whose likelihood JAX cannot see into
BLACK_BOXES = {"lotka_volterra_scipy", "source_location"}

every_model = pytest.mark.parametrize("name", models.names())


@functools.cache
def traced(name):
    """A model's data and its trace at a prior draw."""
    zoo = models.load(name)
    data = zoo.data()
    return data, trace(seed(zoo.model, jax.random.key(0))).get_trace(**data)


def sites(name, observed):
    _, found = traced(name)
    return {
        key: site
        for key, site in found.items()
        if site["type"] == "sample" and site["is_observed"] == observed
    }


@every_model
def test_data_are_finite_numbers(name):
    data, _ = traced(name)
    for key, value in data.items():
        assert np.issubdtype(np.asarray(value).dtype, np.number), key
        assert np.isfinite(value).all(), key


@every_model
def test_latent_sites_have_the_documented_shapes_and_lie_in_their_support(name):
    latent = sites(name, observed=False)
    _, shapes = SITES[name]
    assert {key: site["value"].shape for key, site in latent.items()} == shapes
    for site in latent.values():
        assert np.all(site["fn"].support(site["value"]))


@every_model
def test_log_density_and_gradient_are_finite_at_a_prior_draw(name):
    data, _ = traced(name)
    model, (dimension, _) = models.load(name).model, SITES[name]
    latent = sites(name, observed=False)
    point = {key: site["value"] for key, site in latent.items()}

    @jax.jit
    def start(point):
        unconstrained = unconstrain_fn(model, (), data, point)
        energy = functools.partial(potential_energy, model, (), data)
        if name in BLACK_BOXES:
            return unconstrained, energy(unconstrained), {}
        return unconstrained, *jax.value_and_grad(energy)(unconstrained)

    unconstrained, energy, gradients = start(point)
    assert sum(value.size for value in unconstrained.values()) == dimension
    assert np.isfinite(energy)
    assert all(np.isfinite(gradient).all() for gradient in gradients.values())


@every_model
def test_docstring_states_the_dimension(name):
    dimension, _ = SITES[name]
    words = models.load(name).__doc__
    stated = {
        "bnn": "88 with",
        "galaxies": "8 with",
        "gaussian_mixture_40": "Any number of dimensions",
    }
    assert stated.get(name, f"{dimension} dimensions") in words


@pytest.mark.parametrize(
    "name", sorted(set(SITES) - {"gaussian_mixture_40"} - BLACK_BOXES)
)
def test_prior_predictive_looks_like_the_data(name):
    data, _ = traced(name)
    observed = sites(name, observed=True).keys() & data.keys()
    inputs = {key: value for key, value in data.items() if key not in observed}
    model = seed(models.load(name).model, jax.random.key(2))
    drawn = trace(model).get_trace(**inputs)
    assert observed
    for key in observed:
        assert not drawn[key]["is_observed"]
        assert drawn[key]["value"].shape == data[key].shape
        assert np.isfinite(drawn[key]["value"]).all()


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_galaxies_log_density_ignores_the_labels(order):
    data, _ = traced("galaxies")
    point = {
        "weights": np.array([0.1, 0.3, 0.6]),
        "mu": np.array([9.0, 33.0, 21.0]),
        "sigma": np.array([0.5, 1.0, 2.0]),
    }
    relabelled = {key: value[list(order)] for key, value in point.items()}
    model = models.load("galaxies").model
    here, there = (log_density(model, (), data, p)[0] for p in (point, relabelled))
    np.testing.assert_allclose(here, there, rtol=1e-5)


def test_galaxies_takes_any_number_of_components():
    zoo = models.load("galaxies")
    found = trace(seed(zoo.model, jax.random.key(0))).get_trace(**zoo.data(), K=5)
    assert found["weights"]["value"].shape == (5,)


def test_adult_in_batches_scales_its_likelihood_up():
    data, full = traced("adult")
    model = seed(models.load("adult").model, jax.random.key(0))
    batch = trace(model).get_trace(**data, batch_size=100)
    num_people = len(data["y"])
    assert full["y"]["fn"].batch_shape == (num_people,)
    assert batch["y"]["fn"].batch_shape == (100,)
    assert batch["y"]["scale"] == pytest.approx(num_people / 100)


@pytest.mark.parametrize("options", [{}, {"dim": 10, "unequal": True}])
def test_gaussian_mixture_density_is_the_mixture_whatever_the_prior(options):
    zoo = models.load("gaussian_mixture_40")
    target = zoo.data(**options)
    x = target["means"][3] + 0.5
    density = sum(
        w * multivariate_normal.pdf(x, mean, scale**2)
        for w, mean, scale in zip(target["weights"], target["means"], target["scales"])
    )
    for prior_scale in (25.0, 50.0):
        arguments = {**target, "prior_scale": prior_scale}
        value, _ = log_density(zoo.model, (), arguments, {"x": x})
        np.testing.assert_allclose(value, np.log(density), rtol=1e-4)


@pytest.mark.parametrize("dim", [2, 10])
def test_exact_draws_of_the_gaussian_mixture_have_its_mode_weights(dim):
    zoo = models.load("gaussian_mixture_40")
    target = zoo.data(dim=dim, unequal=True)
    draws = zoo.exact_draws(1, 20_000, dim=dim, unequal=True)
    found = zoo.mode_weights(draws, **target)
    assert found.sum() == pytest.approx(1)
    # multinomial errors are the larger; 4 of them: one false alarm in 200 seeds
    error = np.sqrt(target["weights"] * (1 - target["weights"]) / len(draws))
    assert np.all(np.abs(found - target["weights"]) < 4 * error + 1e-12)


def test_sparse_dirichlet_has_the_posterior_that_its_exact_draws_come_from():
    zoo = models.load("sparse_dirichlet")
    data, _ = traced("sparse_dirichlet")
    posterior = data["concentration"] + data["counts"]
    few, many = zoo.exact_draws(0, 2), zoo.exact_draws(0, 4000)
    ours = [log_density(zoo.model, (), data, {"share": x})[0] for x in few]
    exact = [dirichlet.logpdf(x / x.sum(), posterior) for x in few]
    np.testing.assert_allclose(ours[0] - ours[1], exact[0] - exact[1], atol=0.01)
    np.testing.assert_allclose(many.mean(0), posterior / posterior.sum(), atol=1e-3)


@pytest.mark.parametrize("package", ["models", "models.posteriordb"])
def test_unknown_name_is_answered_with_the_nearest(package):
    shelf = pytest.importorskip(package)
    near, wrong = shelf.names()[0], shelf.names()[0] + "x"
    with pytest.raises(LookupError, match=f"no model '{wrong}': .*'{near}'"):
        shelf.load(wrong)


def test_importing_models_needs_neither_nutfree_nor_a_device():
    program = """
import sys, models, models.posteriordb
for shelf in (models, models.posteriordb):
    assert shelf.names() == sorted(shelf.names())
    for name in shelf.names():
        shelf.load(name)
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized()
assert "nutfree" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_plume_is_straight_downwind_and_loses_mass_on_its_way():
    """The sensor in the wind of a source has the most, and a farther source less."""
    zoo = models.load("source_location")
    sensors = zoo._sensors()
    # with the wind (1, .3) the place from which it blows to the second on the right
    there = sensors[1] - 0.4 * np.asarray(zoo.WIND)
    near, far = zoo.signal(np.stack([there, sensors[1] - 0.7 * np.asarray(zoo.WIND)]))
    assert np.argmax(near[:4]) == 1
    assert np.all(near > 0)
    assert near[1] > far[1]


def test_hares_and_lynxes_turn_about_their_equilibrium():
    """Averages over many cycles are c/d and a/b: Volterra's law."""
    zoo = models.load("lotka_volterra_scipy")
    rate = 0.55, 0.028, 0.8, 0.024
    path = zoo.populations(rate, (34.0, 6.0), np.arange(400.0))
    a, b, c, d = rate
    np.testing.assert_allclose(path.mean(0), [c / d, a / b], rtol=0.03)


@pytest.mark.slow
def test_the_source_is_found_where_a_grid_finds_it():
    """Means within four standard errors of those of a grid, whose cells are a tenth of
    an sd: two comparisons a run."""
    import nutfree as nf

    zoo = models.load("source_location")
    y = zoo.data()["y"]
    tree = nf.sample(
        nf.kernel("ensemble", zoo.model, num_pilot_draws=512),
        num_warmup=100,
        num_samples=2000,
        num_chains=2,
        progress_bar=False,
        y=y,
    )
    axis = (np.arange(100) + 0.5) / 100
    places = np.stack(np.meshgrid(axis, axis, indexing="ij"), -1).reshape(-1, 2)
    log_strength = np.linspace(-1.5, 2.5, 161)
    unit = np.concatenate([zoo.signal(part) for part in np.split(places, 50)])
    mean = np.exp(log_strength)[:, None, None] * unit
    log_density = -0.5 * (((y - mean) / zoo.NOISE) ** 2).sum(-1)
    log_density = log_density - 0.5 * log_strength[:, None] ** 2
    weight = np.exp(log_density - log_density.max())
    expected = weight.sum(0) @ places / weight.sum()
    from arviz_stats.base import array_stats

    place = tree["posterior"]["place"].values
    for i in range(2):
        effective = array_stats.ess(place[..., i], method="mean")
        error = place[..., i].std() / effective**0.5
        assert abs(place[..., i].mean() - expected[i]) < 4 * error
    assert zoo.black_box().num_errors == 0
