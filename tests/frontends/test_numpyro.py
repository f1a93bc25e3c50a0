"""A NumPyro model becomes a target with the parts that the model has."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.reparam import LocScaleReparam
from numpyro.infer.util import log_density, potential_energy

import nutfree as nf
from nutfree.frontends.numpyro import analyse, model_target
from nutfree.frontends.shares import log_det_of_sticks
from tests.targets import regression, regression_data


def hierarchical(group, x, y=None):
    """Nested plates, constrained vector, moving bound, deterministic and factor."""
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(3)))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    low = numpyro.sample("low", dist.Uniform(0.0, scale))
    with numpyro.plate("kinds", 2), numpyro.plate("groups", 4):
        effect = numpyro.sample("effect", dist.Normal(0.0, scale))
    numpyro.deterministic("total", jnp.sum(effect))
    numpyro.factor("preference", -jnp.sum(weights**2))
    mean = effect[group, 0] + effect[group, 1] * x + low
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def hierarchical_data():
    rng = np.random.default_rng(1)
    x = rng.normal(size=20).astype(np.float32)
    y = (x + rng.normal(size=20)).astype(np.float32)
    return {"group": rng.integers(0, 4, 20), "x": x, "y": y}


@pytest.fixture(scope="module")
def target():
    return model_target(regression, (), regression_data())


def test_log_density_is_numpyros_own(target):
    data = regression_data()
    expected = -potential_energy(regression, (), data, target.position)
    assert float(target(target.position)) == pytest.approx(float(expected), rel=1e-6)


def test_prior_is_the_log_density_without_the_observations(target):
    data = regression_data()
    values = target.constrain(target.position)
    _, trace = log_density(regression, (), data, values)
    likelihood = jnp.sum(trace["y"]["fn"].log_prob(trace["y"]["value"]))
    expected = target(target.position) - likelihood
    prior = target.prior.logdensity(target.position)
    assert float(prior) == pytest.approx(float(expected), rel=1e-4)


def test_prior_draws_follow_the_prior(target):
    """False alarm rate below 1e-4: ten standard errors or more."""
    keys = jax.random.split(jax.random.key(0), 4000)
    draws = jax.vmap(lambda k: target.constrain(target.prior.sample(k)))(keys)
    assert np.var(draws["beta"]) == pytest.approx(2.0, rel=0.2)
    assert np.mean(draws["sigma"]) == pytest.approx(2 * np.sqrt(2 / np.pi), rel=0.1)


def test_all_rows_together_are_the_full_log_density(target):
    outside, rows = target.minibatch.terms(target.position, jnp.arange(60))
    assert rows.shape == (60,)
    total = float(outside + jnp.sum(rows))
    assert total == pytest.approx(float(target(target.position)), rel=1e-5)


def test_a_batch_has_the_terms_of_its_rows_also_when_drawn_twice(target):
    terms = jax.jit(target.minibatch.terms)
    _, rows = terms(target.position, jnp.arange(60))
    indices = jnp.asarray([7, 3, 3, 59, 0])
    batch = terms(target.position, indices)[1]
    np.testing.assert_allclose(batch, rows[indices], rtol=1e-5)
    many = jnp.asarray(np.random.default_rng(0).integers(0, 60, 75))
    again = terms(target.position, many)[1]
    np.testing.assert_allclose(again, rows[many], rtol=1e-5)


def test_batches_are_unbiased_in_expectation_over_all_rows(target):
    estimate = jax.jit(
        jax.vmap(lambda i: target.minibatch.logdensity(target.position, i[None]))
    )
    mean = jnp.mean(estimate(jnp.arange(60)))
    assert float(mean) == pytest.approx(float(target(target.position)), rel=1e-4)


def test_subsample_size_of_the_model_changes_nothing():
    data = regression_data()
    whole = model_target(regression, (), data)
    small = model_target(regression, (), {**data, "batch_size": 7})
    assert float(whole(whole.position)) == float(small(whole.position))


def test_split_puts_the_laplace_term_apart_and_keeps_the_sum(target):
    position = jax.tree.map(lambda x: x + 0.3, target.position)
    values = target.split.constrain(position)
    smooth, nonsmooth = target.split.terms(values)
    whole = smooth - nonsmooth["beta"].value(values["beta"])
    whole = whole + target.split.log_det(position)
    assert float(whole) == pytest.approx(float(target(position)), rel=1e-5)
    assert set(target.split.supports) == {"beta", "sigma"}
    back = target.split.unconstrain(values)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), back, position
    )


def test_constrain_has_the_deterministic_sites_and_unconstrain_inverts_it(target):
    values = target.constrain(target.position)
    assert set(values) == {"beta", "sigma", "precision"}
    back = target.unconstrain(values)
    for name, leaf in target.position.items():
        np.testing.assert_allclose(back[name], leaf, atol=1e-5)


def test_hierarchical_model_has_its_parts_and_a_moving_bound_is_marked():
    data = hierarchical_data()
    frontend = analyse(hierarchical, (), data)
    target = frontend.build((), data)
    position = {name: jnp.full(s, 0.3) for name, s in frontend.shapes.items()}

    @jax.jit
    def values(position, key):
        expected = -potential_energy(hierarchical, (), data, position)
        return target(position), expected, target(target.prior.sample(key))

    here, expected, at_draw = values(position, jax.random.key(0))
    assert float(here) == pytest.approx(float(expected), rel=1e-5)
    assert np.isfinite(at_draw)
    assert target.split.supports["low"] is dist.constraints.dependent
    assert target.split.supports["weights"] is dist.constraints.simplex
    assert target.minibatch is None
    assert "numpyro.subsample" in target.advice["minibatch"]


def _bounded_above(bound):
    uniform = dist.Uniform(0.0, bound)
    return {
        "uniform": uniform,
        "event": uniform.expand([3]).to_event(1),
        "truncated": dist.TruncatedNormal(0.0, 9.0, low=0.0, high=bound),
        "truncated event": dist.TruncatedNormal(0.0, 9.0, high=bound)
        .expand([3])
        .to_event(1),
        "pareto": dist.Pareto(bound, 3.0).expand([2, 2]).to_event(2),
        "moved": dist.TransformedDistribution(
            dist.HalfNormal(1.0),
            dist.transforms.AffineTransform(bound, 1.0, dist.constraints.positive),
        )
        .expand([2])
        .to_event(1),
    }


@pytest.mark.parametrize("kind", _bounded_above(1.0))
def test_a_bound_that_depends_on_a_site_is_followed_wherever_it_is(kind):
    def model(bound=None):
        top = numpyro.sample("top", dist.LogNormal(1.0, 0.5))
        numpyro.sample("x", _bounded_above(top if bound is None else bound)[kind])

    constraints = dist.constraints
    assert analyse(model).supports["x"] is constraints.dependent
    fixed = analyse(model, (np.float32(2.0),)).supports["x"]
    assert fixed is not constraints.dependent


def test_nuts_by_name_constrains_each_draw_by_its_own_bound():
    def model():
        top = numpyro.sample("top", dist.LogNormal(1.0, 0.5))
        numpyro.sample("x", dist.Uniform(0.0, top).expand([3]).to_event(1))

    kernel = nf.kernel("nuts", model)
    kernel.init(jax.random.key(0), 1)
    constrain = kernel.postprocess_fn((), {})
    for top in (1.0, 5.0):
        position = {"top": jnp.log(top), "x": jnp.zeros(3)}
        np.testing.assert_allclose(constrain(position)["x"], top / 2, rtol=1e-6)


def test_condition_and_reparam_are_handled():
    data = hierarchical_data()
    conditioned = handlers.condition(hierarchical, data={"scale": jnp.asarray(1.0)})
    assert "scale" not in analyse(conditioned, (), data).shapes
    noncentred = handlers.reparam(hierarchical, config={"effect": LocScaleReparam(0)})
    frontend = analyse(noncentred, (), data)
    assert "effect_decentered" in frontend.shapes
    target = frontend.build((), data)
    position = {name: jnp.zeros(shape) for name, shape in frontend.shapes.items()}
    assert "effect" in jax.eval_shape(target.constrain, position)
    at_draw = jax.jit(lambda key: target(target.prior.sample(key)))
    assert np.isfinite(at_draw(jax.random.key(0)))


def test_masked_rows_count_for_nothing():
    def model(y, observed):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("data", 10):
            y, observed = (numpyro.subsample(a, event_dim=0) for a in (y, observed))
            with handlers.mask(mask=observed):
                numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    observed = jnp.arange(10) < 4
    y = jnp.where(observed, 0.5, 1e6)
    target = model_target(model, (y, observed))
    _, rows = target.minibatch.terms(target.position, jnp.arange(10))
    assert np.all(rows[4:] == 0)
    assert np.all(rows[:4] < 0)


def test_several_data_plates_must_be_told_apart():
    def model(y, w):
        mu = numpyro.sample("mu", dist.Normal())
        with numpyro.plate("first", 10):
            numpyro.sample("y", dist.Normal(mu, 1), obs=numpyro.subsample(y, 0))
        with numpyro.plate("second", 8):
            numpyro.sample("w", dist.Normal(mu, 1), obs=numpyro.subsample(w, 0))

    data = (jnp.ones(10), jnp.ones(8))
    frontend = analyse(model, data)
    assert frontend.plate is None
    assert 'plate="first"' in frontend.advice["minibatch"]
    chosen = model_target(model, data, plate="second")
    assert chosen.minibatch.num_data == 8
    _, rows = chosen.minibatch.terms(chosen.position, jnp.arange(8))
    outside, _ = chosen.minibatch.terms(chosen.position, jnp.asarray([0, 3]))
    total = float(outside + jnp.sum(rows))
    assert total == pytest.approx(float(chosen(chosen.position)), rel=1e-5)


def test_latent_variable_of_each_row_is_refused_by_name():
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal())
        with numpyro.plate("data", 10):
            y = numpyro.subsample(y, event_dim=0)
            level = numpyro.sample("level", dist.Normal(0, scale))
            numpyro.sample("y", dist.Normal(level, 1), obs=y)

    target = model_target(model, (jnp.ones(10),))
    assert target.minibatch is None
    assert "'level'" in target.advice["minibatch"]
    with pytest.raises(nf.MissingCapability, match="'level'"):
        nf.kernel("sgld", model).init(jax.random.key(0), 0, None, (jnp.ones(10),), {})


def test_improper_prior_is_named_where_a_prior_is_needed():
    def model():
        numpyro.sample("x", dist.ImproperUniform(dist.constraints.real, (), ()))
        numpyro.factor("f", 0.0)

    target = model_target(model)
    assert target.prior is None
    assert "'x'" in target.advice["prior"]


def test_smooth_unbounded_model_has_no_split_and_says_what_to_write():
    def model():
        numpyro.sample("x", dist.Normal().expand([2]).to_event(1))

    with pytest.raises(nf.MissingCapability, match="Laplace"):
        nf.kernel("bregman", model).init(jax.random.key(0), 0, None, (), {})


def test_discrete_latent_is_refused_by_name():
    def model():
        p = numpyro.sample("p", dist.Beta(1, 1))
        numpyro.sample("coin", dist.Bernoulli(p))

    with pytest.raises(nf.UnsupportedModel, match="'coin' is discrete"):
        model_target(model)


def test_model_without_a_latent_site_is_refused():
    def model(y):
        numpyro.sample("y", dist.Normal(), obs=y)

    with pytest.raises(nf.UnsupportedModel, match="no latent site"):
        model_target(model, (1.0,))


def test_nan_in_the_data_is_named():
    data = regression_data()
    data["X"][3, 1] = np.nan
    with pytest.raises(nf.InvalidData, match="'X' has NaN"):
        model_target(regression, (), data)


def test_no_finite_start_names_the_site():
    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal())
        numpyro.sample("y", dist.Exponential(scale), obs=y)

    with pytest.raises(nf.NoFiniteStart, match="no finite log density: y"):
        model_target(model, (jnp.asarray([1.0, jnp.inf]),))


def test_observations_may_be_many_of_one_distribution():
    def model(y):
        mu = numpyro.sample("mu", dist.Normal())
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    target = model_target(model, (jnp.arange(3.0),))
    assert np.isfinite(target(target.position))


def test_shapes_that_disagree_are_named():
    def model(X, y):
        beta = numpyro.sample("beta", dist.Normal().expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(X @ beta, 1), obs=y)

    X = jnp.ones((10, 2))
    with pytest.raises(nf.InvalidData, match=r"'y' has data of shape \(10, 1\)"):
        model_target(model, (X, jnp.ones((10, 1))))
    with pytest.raises(nf.InvalidData, match="cannot be run on these arguments"):
        model_target(model, (jnp.ones((10, 3)), jnp.ones(10)))
    with pytest.raises(nf.InvalidData, match="cannot be run on these arguments"):
        model_target(model, (X,))


def spread(y):
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    mu = numpyro.sample("mu", dist.Laplace(0.0, sigma))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


@pytest.mark.parametrize(
    ("wrap", "data"),
    [
        (lambda model: handlers.scope(model, prefix="part"), jnp.arange(3.0)),
        (nf.federated, [(jnp.arange(3.0),), (jnp.ones(4),)]),
        (
            lambda model: handlers.scope(nf.federated(model), prefix="part"),
            [(jnp.arange(3.0),), (jnp.ones(4),)],
        ),
    ],
    ids=["scope", "federated", "scope of federated"],
)
def test_prior_and_split_have_the_jacobian_also_where_sites_are_renamed(wrap, data):
    model = wrap(spread)
    target = model_target(model, (data,))
    position = jax.tree.map(lambda x: x + 0.3, target.position)
    values = target.split.constrain(position)
    _, trace = log_density(handlers.seed(model, 0), (data,), {}, values)
    observed = [s for s in trace.values() if s.get("is_observed")]
    likelihood = sum(jnp.sum(s["fn"].log_prob(s["value"])) for s in observed)
    whole = float(target(position))
    prior = target.prior.logdensity(position)
    assert float(prior + likelihood) == pytest.approx(whole, rel=1e-4)
    smooth, nonsmooth = target.split.terms(values)
    term = sum(part.value(values[name]) for name, part in nonsmooth.items())
    parts = smooth - term + target.split.log_det(position)
    assert float(parts) == pytest.approx(whole, rel=1e-4)


def centred_in_its_batch(y):
    mu = numpyro.sample("mu", dist.Normal())
    with numpyro.plate("data", len(y)):
        y = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(mu, 1), obs=y - jnp.mean(y))


def counted_outside_the_plate(y):
    mu = numpyro.sample("mu", dist.Normal())
    with numpyro.plate("data", len(y)):
        y = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)
    numpyro.factor("again", mu * jnp.sum(y))


@pytest.mark.parametrize("model", [centred_in_its_batch, counted_outside_the_plate])
def test_rows_that_depend_on_their_batch_are_refused(model):
    target = model_target(model, (jnp.arange(5.0) ** 2,))
    assert target.minibatch is None
    assert "depends on the other rows" in target.advice["minibatch"]


def shares_and_rows(y, law):
    numpyro.sample("x", law)
    with numpyro.plate("rows", len(y)):
        y = numpyro.subsample(y, event_dim=0)
        numpyro.sample("y", dist.Normal(), obs=y)


def density_of_shares(written, law):
    """`(log density, position)`, the log density but for what depends on the data."""
    if written == "composite":
        supports = {"x": law.support}
        target = nf.composite(law.log_prob, {}, jnp.full(3, 1 / 3), supports=supports)
        return target, target.position
    if written == "model":
        target = nf.model_target(lambda: numpyro.sample("x", law))
        return target, target.position
    y = jnp.ones(6)
    if written == "rows":
        target = nf.model_target(shares_and_rows, (y,), {"law": law})
        terms = target.minibatch.terms
        return lambda z: terms(z, jnp.arange(3))[0], target.position
    owners = [{"y": y, "law": law}] * 2
    target = nf.model_target(nf.federated(shares_and_rows), (owners,))
    return lambda z: sum(shard(z) for shard in target.shards), target.position


@pytest.mark.parametrize("written", ["model", "composite", "rows", "owners"])
def test_the_density_of_shares_falls_where_they_are_below_the_smallest_number(written):
    """With z of the first share, as z: its log there is a constant, and its slope 1."""
    density, start = density_of_shares(written, dist.Dirichlet(jnp.full(3, 0.1)))
    position, unravel = jax.flatten_util.ravel_pytree(start)

    def slope(z):
        ends = (unravel(position.at[0].set(e)) for e in (z - 5.0, z + 5.0))
        low, high = (density(end) for end in ends)
        return (high - low) / 10

    np.testing.assert_allclose(slope(-60.0), 0.1, rtol=1e-3)
    np.testing.assert_allclose([slope(-100.0), slope(-1000.0)], 1.0, rtol=1e-3)


def test_the_jacobian_of_shares_is_that_of_numpyro_where_nothing_is_clipped():
    z = 3 * jax.random.normal(jax.random.key(0), (5, 4))
    to_shares = biject_to(dist.constraints.simplex)
    expected = to_shares.log_abs_det_jacobian(z, to_shares(z))
    np.testing.assert_allclose(log_det_of_sticks(z), expected, rtol=1e-5)
