"""What NumPyro's own tests ask of `MCMC` with any kernel, asked of ours.

After the ideas of its `test/infer/test_mcmc.py`, written anew: warm-up apart
from sampling, runs that go on, other shapes, init strategies, chain methods, models
without anything to sample. The quick form is of one kernel, the slow one of all.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import (
    MCMC,
    Predictive,
    init_to_feasible,
    init_to_mean,
    init_to_median,
    init_to_sample,
    init_to_uniform,
    init_to_value,
)

import nutfree as nf
from tests.targets import SHORT_PILOT, SPECS, kernel_param

pytestmark = pytest.mark.usefixtures("toys")
Y = np.array([0.3, -0.4, 1.2, 0.5, -0.1, 0.8], np.float32)
#: Those that run on any model: the others need rows, owners or a split.
ALL = [
    kernel_param("toy"),
    *(kernel_param(n, quick=False) for n, s in SPECS.items() if not s.needs),
]


def model(y, scale=1.0):
    mu = numpyro.sample("mu", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2))
    numpyro.deterministic("ratio", mu / sigma)
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mu, scale * sigma), obs=y)


def short(name, model=model, **settings):
    kernel = nf.kernel(name, model, **SHORT_PILOT.get(name, {}))
    settings = {"num_warmup": 8, "num_samples": 6, "progress_bar": False} | settings
    return MCMC(kernel, **settings)


def draws_of(mcmc):
    return mcmc.get_samples()["mu"]


@pytest.mark.parametrize("name", ALL)
def test_warmup_apart_from_sampling_makes_the_same_draws_and_goes_on(name):
    whole = short(name)
    whole.run(jax.random.key(0), Y)
    parts = short(name)
    parts.warmup(jax.random.key(0), Y)
    state = parts.post_warmup_state
    parts.run(state.rng_key, Y)
    np.testing.assert_allclose(draws_of(parts), draws_of(whole), rtol=1e-4)
    # and on from the last state, without a warm-up
    parts.post_warmup_state = parts.last_state
    parts.run(parts.last_state.rng_key, Y)
    assert int(parts.last_state.i) == 8 + 6 + 6
    step_size = getattr(state.adapt_state, "step_size", None)
    if step_size is not None:
        assert parts.last_state.adapt_state.step_size == step_size
    # the other way to leave warm-up out
    assert int(whole.last_state.i) == 8 + 6


@pytest.mark.parametrize("name", ALL)
def test_one_object_runs_on_data_of_other_shapes_and_other_arguments(name):
    mcmc = short(name, num_chains=2, chain_method="vectorized")
    for y, arguments in ((Y[:4], {}), (Y, {}), (Y, {"scale": 2.0})):
        mcmc.run(jax.random.key(0), y, **arguments)
        grouped = mcmc.get_samples(group_by_chain=True)
        assert {k: v.shape for k, v in grouped.items()} == dict.fromkeys(
            ("mu", "sigma", "ratio"), (2, 6)
        )
        flat = mcmc.get_samples()
        np.testing.assert_array_equal(flat["mu"], np.ravel(grouped["mu"]))
        np.testing.assert_allclose(flat["ratio"], flat["mu"] / flat["sigma"], rtol=1e-5)
        predicted = Predictive(model, flat)(jax.random.key(1), y, **arguments)
        assert predicted["ratio"].shape == (12,)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("method", ["sequential", "vectorized", "parallel"])
def test_every_chain_method_gives_each_chain_draws_of_its_own(name, method):
    mcmc = short(name, num_chains=2, chain_method=method)
    mcmc.run(jax.random.key(0), Y, extra_fields=("potential_energy", "i"))
    grouped = mcmc.get_samples(group_by_chain=True)
    assert grouped["mu"].shape == (2, 6)
    fields = mcmc.get_extra_fields(group_by_chain=True)
    np.testing.assert_array_equal(np.asarray(fields["i"]), [range(9, 15)] * 2)
    assert fields["potential_energy"].shape == (2, 6)
    # a kernel that rejects may stand still; two chains do not stand at one place
    assert np.any(grouped["mu"][0] != grouped["mu"][1])


@pytest.mark.parametrize(
    "strategy",
    [
        init_to_value(values={"mu": 1.5, "sigma": 0.7}),
        *(
            pytest.param(strategy, marks=pytest.mark.slow)
            for strategy in (
                init_to_feasible,
                init_to_mean(),
                init_to_median(num_samples=5),
                init_to_sample(),
                partial(init_to_uniform, radius=1.0),
            )
        ),
    ],
)
def test_every_init_strategy_is_where_the_search_begins(strategy):
    """Of a kernel whose pilot does not leave it."""
    name = "blackjax.rmh"
    kernel = nf.kernel(name, model, init_strategy=strategy)
    state = kernel.init(jax.random.key(0), 0, None, (Y,), {})
    assert np.all(np.isfinite(jax.tree.leaves(state.z)))
    if getattr(strategy, "keywords", {}).get("values"):
        np.testing.assert_allclose(state.z["mu"], 1.5)
        np.testing.assert_allclose(state.z["sigma"], np.log(0.7), rtol=1e-5)


def empty():
    pass


def only_deterministic():
    numpyro.deterministic("two", 2.0 * jnp.ones(3))


@pytest.mark.parametrize("name", ALL)
def test_a_model_with_nothing_to_sample_behaves_as_with_nuts(name, capsys):
    sizes = {}
    for kernel in (name, "nuts"):
        for what in (empty, only_deterministic):
            mcmc = short(kernel, what)
            mcmc.run(jax.random.key(0))
            mcmc.print_summary()
            shapes = {k: v.shape for k, v in mcmc.get_samples().items()}
            sizes.setdefault(what, []).append(shapes)
    assert "Number of divergences: 0" in capsys.readouterr().out
    assert sizes[empty] == [{}, {}]
    assert sizes[only_deterministic] == [{"two": (6, 3)}] * 2
    kernel = nf.kernel(name, only_deterministic)
    settings = {"num_warmup": 2, "num_samples": 3, "num_chains": 2}
    tree = nf.sample(kernel, **settings, progress_bar=False)
    assert tree["posterior"]["two"].shape == (2, 3, 3)
