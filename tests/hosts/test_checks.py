"""What a call can have wrong is refused with what to write instead."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from numpyro.infer import MCMC

import nutfree as nf

pytestmark = pytest.mark.usefixtures("toys")
Y = np.array([0.5, 1.0, 0.2], np.float32)


def model(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("scale", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, 1), obs=y)


def run(kernel, *args, **settings):
    few = {"num_warmup": 2, "num_samples": 2, "num_chains": 2, "progress_bar": False}
    return nf.sample(kernel, *(args or (Y,)), **(few | settings))


@pytest.mark.parametrize(
    "settings",
    [
        {"num_chains": 0},
        {"num_chains": 1.5},
        {"num_samples": 0},
        {"num_samples": "many"},
        {"num_warmup": -1},
        {"thinning": 0},
        {"thinning": 3},
        {"seed": None},
        {"chain_method": "vectorised"},
    ],
    ids=str,
)
def test_a_setting_that_makes_no_run_is_named(settings):
    with pytest.raises(nf.InvalidOption, match=next(iter(settings))):
        run(nf.kernel("toy", model), **settings)
    if not {"thinning", "chain_method"} & set(settings):
        with pytest.raises(nf.InvalidOption, match=next(iter(settings))):
            nf.compare(model, Y, **settings)


@pytest.mark.parametrize(
    ("init_params", "said"),
    [
        ({"mu": 0.0, "scale": np.zeros(2)}, "leading axis of the 2 chains"),
        ({"mu": np.zeros(2)}, r"latent sites are \['mu', 'scale'\]"),
        ({"mu": np.zeros(2), "scale": np.zeros((2, 3))}, r"write \(2, 2\)"),
    ],
    ids=["no chains", "a site missing", "on the wrong space"],
)
def test_starting_points_of_another_shape_say_which_to_write(init_params, said):
    with pytest.raises(nf.InvalidOption, match=said):
        run(nf.kernel("toy", model), init_params=init_params)


def test_a_start_is_not_finite_because_of_the_data():
    data = np.array([np.nan, 1.0])
    with pytest.raises(nf.InvalidData, match="has NaN"):
        run(nf.kernel("toy", centred), data, init_params={"mu": np.zeros(2)})


def centred(y):
    mu = numpyro.sample("mu", dist.Normal(0, 1))
    numpyro.sample("y", dist.Normal(mu, 1), obs=y)


@pytest.mark.parametrize("fields", ["i", ("nope",), ("adapt_state.nope",)])
def test_fields_that_the_state_does_not_have_are_named(fields):
    with pytest.raises(nf.InvalidOption, match="extra_fields"):
        run(nf.kernel("nuts", centred), extra_fields=fields)


@pytest.mark.parametrize("name", ["toy", "nuts"])
def test_what_is_no_model_is_refused_when_the_kernel_is_built(name):
    with pytest.raises(nf.InvalidOption, match="NumPyro model"):
        nf.kernel(name, "galaxies")
    with pytest.raises(nf.InvalidOption, match="minus the log density"):
        nf.kernel(name, potential_fn=3)
    with pytest.raises(nf.InvalidOption, match="init_to_"):
        nf.kernel(name, model, init_strategy="median")
    with pytest.raises(nf.InvalidOption, match="not both"):
        nf.kernel(name, model, potential_fn=model)


def test_options_of_nuts_are_checked_by_range():
    with pytest.raises(nf.InvalidOption, match="less than 1"):
        nf.kernel("nuts", model, target_accept_prob=3.0)


def discrete(y):
    side = numpyro.sample("side", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(side, 1), obs=y)


def observed_only(y):
    numpyro.sample("y", dist.Normal(0, 1), obs=y)


def waiting_times(y):
    rate = numpyro.sample("rate", dist.HalfNormal())
    numpyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "error", "said"),
    [
        (centred, np.array([np.nan, 1.0]), nf.InvalidData, "has NaN"),
        (centred, [1.0, 2.0], nf.InvalidData, "type list"),
        (centred, np.array(["a"]), nf.InvalidData, "no numbers"),
        (model, np.zeros(0), nf.InvalidData, "size of plate"),
        (waiting_times, -Y, nf.NoFiniteStart, "density: y"),
        (discrete, Y, nf.UnsupportedModel, "'side' is discrete"),
        (observed_only, Y, nf.UnsupportedModel, "no latent site"),
        (lambda d: centred(d["z"]), {"y": Y}, nf.InvalidData, "KeyError: 'z'"),
    ],
    ids=["nan", "list", "words", "empty", "support", "discrete", "no latent", "key"],
)
@pytest.mark.parametrize("name", ["toy", "nuts"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_model_that_cannot_run_is_explained_also_for_nuts(
    name, model, data, error, said
):
    with pytest.raises(error, match=said):
        run(nf.kernel(name, model), data)


def test_the_message_of_a_refusal_is_not_wrapped_in_another():
    with pytest.raises(nf.InvalidData) as caught:
        run(nf.kernel("federated", nf.federated(centred)), [])
    assert str(caught.value).startswith("The list of owners is empty")


def test_too_few_rows_for_a_batch_are_not_a_missing_subsample():
    def rows(y):
        mu = numpyro.sample("mu", dist.Normal(0, 1))
        with numpyro.plate("rows", len(y)):
            y = numpyro.subsample(y, event_dim=0)
            numpyro.sample("y", dist.Normal(mu, 1), obs=y)

    with pytest.raises(nf.MissingCapability, match="2 of the 3 rows"):
        run(nf.kernel("sgld", rows), Y[:2])


def test_a_run_that_is_none_is_refused_by_the_converter():
    kernel = nf.kernel("toy", model)
    with pytest.raises(nf.InvalidOption, match=r"pass the numpyro\.infer\.MCMC"):
        nf.to_arviz(kernel)
    with pytest.raises(nf.InvalidOption, match="no draws yet"):
        nf.to_arviz(MCMC(kernel, num_warmup=1, num_samples=1))


def test_parameters_in_blackjax_form_are_checked():
    density = lambda x: -0.5 * x**2  # noqa: E731
    with pytest.raises(nf.InvalidOption, match="more than 0"):
        nf.mala(density, step_size=-1.0, inverse_mass_matrix=1.0)
    with pytest.raises(nf.InvalidOption, match=r"needs .*nutfree\.mala\.warmup"):
        nf.mala(density)
    with pytest.raises(nf.InvalidOption, match="logdensity_fn is 3"):
        nf.mala(3, step_size=0.1, inverse_mass_matrix=1.0)
    assert jax.jit(
        lambda h: nf.mala(density, step_size=h, inverse_mass_matrix=1.0).init(h)
    )(0.1)


def _float_of_a_latent(y):
    m = numpyro.sample("m", dist.Normal())
    numpyro.sample("y", dist.Normal(float(m), 1), obs=y)


def _if_on_a_latent(y):
    m = numpyro.sample("m", dist.Normal())
    numpyro.sample("y", dist.Normal(m if m > 0 else -m, 1), obs=y)


def _pandas_of_a_latent(y):
    m = numpyro.sample("m", dist.Normal())
    numpyro.sample("y", dist.Normal(np.sum(m), 1), obs=np.asarray(m) + y)


def _list_at_a_latent(y):
    i = jnp.int32(numpyro.sample("m", dist.Normal()) > 0)
    numpyro.sample("y", dist.Normal([1.0, 2.0][i], 1), obs=y)


def _loop_on_a_latent(y):
    m = numpyro.sample("m", dist.Normal())
    m = jax.lax.while_loop(lambda m: m < 0, lambda m: m + 1, m)
    numpyro.sample("y", dist.Normal(m, 1), obs=y)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (_float_of_a_latent, "leave out float"),
        (_if_on_a_latent, "write jnp.where"),
        (_pandas_of_a_latent, "in place of NumPy's or pandas'"),
        (_list_at_a_latent, "index a JAX array"),
        (_loop_on_a_latent, "needs no gradient"),
    ],
)
def test_what_a_traced_model_cannot_do_is_explained_at_its_line(model, said):
    first = model.__code__.co_firstlineno
    with pytest.raises(nf.InvalidData, match=said) as caught:
        nf.kernel("mala", model).init(jax.random.key(0), 1, model_args=(1.0,))
    if model is not _loop_on_a_latent:  # it is differentiated where it is not called
        assert f"(test_checks.py, line {first + 2})" in str(caught.value)


def test_a_table_of_pandas_in_place_of_its_numbers_is_named():
    def model(groups):
        levels = numpyro.sample("levels", dist.Normal().expand([3]).to_event(1))
        numpyro.factor("f", levels[groups].sum())

    groups = pd.Series([0, 1, 2, 1])
    with pytest.raises(nf.InvalidData, match=r"pandas Series.*series\.to_numpy\(\)"):
        nf.model_target(model, (groups,))
    assert nf.model_target(model, (groups.to_numpy(),)).position is not None
