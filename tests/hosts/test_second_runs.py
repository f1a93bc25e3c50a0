"""A run like an earlier one of the process compiles nothing, and is still its own."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax import monitoring
from numpyro.infer import MCMC

import nutfree as nf
from nutfree.frontends.numpyro import analyse

compiled: list[str] = []
monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **about: (
        compiled.append(str(about.get("fun_name")))
        if "backend_compile" in event
        else None
    )
)


@contextmanager
def compilations():
    """Collect the names of the programs that are compiled meanwhile."""
    found: list[str] = []
    before = len(compiled)
    yield found
    found += compiled[before:]


def regression(x, y, scale=1.0):
    slope = numpyro.sample("slope", dist.Normal(0, scale))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(slope * x, 1), obs=y)


def data(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=30)
    return x, (1 + seed) * x + rng.normal(size=30)


def exact(x, y, scale=1.0):
    """Mean and sd of the slope."""
    precision = 1 / scale**2 + np.sum(x * x)
    return np.sum(x * y) / precision, precision**-0.5


SETTINGS = dict(num_warmup=100, num_samples=500, num_chains=2, progress_bar=False)


def sample(model, *args, name="mala", seed=0, **kwargs):
    kernel = nf.kernel(name, model)
    return nf.sample(kernel, *args, **SETTINGS, seed=seed, **kwargs).posterior


def agrees(draws, mean, sd):
    """Within .25 sd: 4 standard errors of some 300 effective draws."""
    return (
        abs(float(draws.mean()) - mean) < 0.25 * sd
        and abs(float(draws.std()) / sd - 1) < 0.25
    )


def test_a_kernel_built_anew_on_other_data_compiles_nothing():
    first = sample(regression, *data(0), scale=1.0)
    for seed, scale in [(0, 1.0), (1, 1.0), (1, 0.1)]:
        with compilations() as found:
            draws = sample(regression, *data(seed), scale=scale, seed=seed)
        assert not found
        assert agrees(draws["slope"], *exact(*data(seed), scale))
        if (seed, scale) == (0, 1.0):
            np.testing.assert_array_equal(draws["slope"], first["slope"])


def test_numpyros_mcmc_compiles_its_own_program_alone_in_a_second_run():
    kernel = nf.kernel("mala", regression)
    mcmc = MCMC(
        kernel, num_warmup=20, num_samples=20, num_chains=2, progress_bar=False,
        chain_method="vectorized",
    )  # fmt: skip
    mcmc.run(jax.random.key(0), *data(0))
    with compilations() as found:
        mcmc.run(jax.random.key(1), *data(2))
    assert len(found) <= 1


def test_what_a_model_takes_from_outside_is_looked_at_again():
    shift = 0.0

    def model():
        center = numpyro.sample("center", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(center, 1), obs=shift)

    before = sample(model)["center"]
    shift = 5.0
    after = sample(model)["center"]
    sd = (1 + 1 / 100) ** -0.5
    assert agrees(before, 0.0, sd)
    assert agrees(after, 5.0 / 1.01, sd)


def test_a_model_that_takes_numbers_apart_gets_them_as_they_are():
    def model(y):
        center = numpyro.sample("center", dist.Normal(0, 10))
        numpyro.sample("y", dist.Normal(center, 1), obs=float(y) + 1)

    sd = (1 + 1 / 100) ** -0.5
    assert agrees(sample(model, 2.0)["center"], 3.0 / 1.01, sd)
    with compilations() as found:  # it is traced anew, and finds the program
        assert agrees(sample(model, 2.0)["center"], 3.0 / 1.01, sd)
    assert not found


def test_float64_keeps_its_digits_where_a_model_takes_large_numbers_apart():
    """In float32 these times are 128 seconds apart."""
    times = 1.6e9 + np.arange(5.0)

    def model(times):
        center = numpyro.sample("center", dist.Normal(0, 10))
        numpyro.sample(
            "y", dist.Normal(center, 1).expand([5]).to_event(1), obs=times - times.min()
        )

    taken = analyse(model, (times,)).arguments((times,), {}, gradient=True)
    assert not taken.fed
    assert taken.key is not None
    assert taken.now[0][0] is times


def test_models_that_differ_in_what_they_compute_have_different_keys():
    def key(model, *args):
        return analyse(model, args).arguments(args, {}, gradient=True).key

    def normal(x, by=1.0):
        numpyro.sample("a", dist.Normal(0, by))
        numpyro.sample("y", dist.Normal(0, 1), obs=x)

    def wide(x):
        normal(x, by=2.0)

    def with_constant(x, constant=jnp.arange(3.0)):
        numpyro.factor("f", jnp.sum(constant))
        normal(x)

    def with_another(x):
        with_constant(x, constant=jnp.arange(3.0) + 1)

    keys = [key(m, 1.0) for m in (normal, wide, with_constant, with_another)]
    assert len(set(keys)) == 4
    assert None not in keys
    assert key(normal, 1.0) == key(normal, 2.0)


def test_a_model_that_calls_back_to_python_shares_nothing():
    def model(x):
        out = jax.ShapeDtypeStruct((), jnp.result_type(float))
        numpyro.sample("a", dist.Normal(0, 1))
        numpyro.factor("f", jax.pure_callback(lambda v: v, out, x))

    taken = analyse(model, (1.0,)).arguments((1.0,), {}, gradient=False)
    assert taken.key is None


@pytest.mark.slow
def test_checks_and_advice_on_other_data_compile_nothing():
    def judged(seed):
        kernel = nf.kernel("mala", regression)
        tree = nf.sample(kernel, *data(seed), **SETTINGS, seed=seed)
        nf.recommend(regression, *data(seed))
        return nf.check(tree, regression, *data(seed))

    judged(0)
    with compilations() as found:
        assert judged(1).sound
    assert not found
