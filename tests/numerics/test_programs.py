"""Programs that the data are arguments of, and their precision."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC

import nutfree as nf
from nutfree.numerics.programs import in_full_precision, jitted


def test_data_are_arguments_and_their_values_at_hand(monkeypatch):
    rows = np.arange(100_000, dtype=np.float32)
    texts, jit = [], jax.jit

    def total(x):
        largest = int(np.max(rows))  # as a model may ask how many groups there are
        return {"sum": jnp.sum(x * rows) / largest}

    def watched(fun):
        program = jit(fun)

        def call(*args):
            texts.append(program.lower(*args).as_text())
            return program(*args)

        return call

    monkeypatch.setattr(jax, "jit", watched)
    program, expected = jitted(total), 50_000.0
    for x in (jnp.asarray(1.0), jnp.asarray(3.0), jnp.ones(1)):
        found = program(x)["sum"]
        np.testing.assert_allclose(found, np.max(x) * expected, rtol=1e-5)
    assert max(map(len, texts)) < 10_000
    assert len(jit(total).lower(1.0).as_text()) > 100_000


def test_shapes_are_those_of_jit():
    def fun(x):
        return x + jnp.ones(3), jnp.asarray(0)

    x = jnp.zeros(())
    found, expected = jax.eval_shape(jitted(fun), x), jax.eval_shape(jax.jit(fun), x)
    assert found == expected
    assert [s.weak_type for s in found] == [s.weak_type for s in expected]


SHORT = {
    "num_warmup": 100,
    "num_samples": 100,
    "num_chains": 2,
    "progress_bar": False,
}


def by_numpyro(model):
    mcmc = MCMC(nf.kernel("mala", model), chain_method="vectorized", **SHORT)
    mcmc.run(jax.random.key(0))


def by_sample(model):
    nf.sample(nf.kernel("nuts", model), **SHORT)


def by_comparison(model):
    nf.compare(model, kernels=["mala"], **SHORT)


def by_blackjax(model):
    def logdensity(x):
        with numpyro.handlers.seed(rng_seed=0), numpyro.handlers.substitute(data=x):
            model()
        return -0.5 * jnp.sum(x["x"] ** 2)

    start = {"x": jnp.zeros(3)}
    found = nf.mala.warmup(logdensity, jax.random.key(0), start, num_steps=5)
    algorithm = nf.mala(logdensity, **found.parameters)
    jax.jit(algorithm.step)(jax.random.key(1), algorithm.init(start))


#: A comparison samples as `nutfree.sample` does, and takes long to judge the draws.
QUICK = [by_numpyro, by_sample, by_blackjax]
SLOW = [(by_comparison, None)]
SLOW += [(run, "bfloat16") for run in (*QUICK, by_comparison)]


@pytest.mark.parametrize(
    ("run", "given"),
    [(run, None) for run in QUICK]
    + [pytest.param(*case, marks=pytest.mark.slow) for case in SLOW],
)
def test_products_are_in_full_precision_unless_told_otherwise(run, given):
    seen = set()

    def model():
        seen.add(jax.config.jax_default_matmul_precision)
        numpyro.sample("x", dist.Normal().expand([3]))

    with jax.default_matmul_precision(given):
        run(model)
    assert seen == {given or "highest"}


@pytest.mark.parametrize("given", [None, "bfloat16"])
def test_a_precision_that_the_user_has_set_stays(given):
    @in_full_precision
    def precision():
        return jax.config.jax_default_matmul_precision

    with jax.default_matmul_precision(given):
        assert precision() == (given or "highest")
        assert jax.config.jax_default_matmul_precision == given


def test_a_program_compiled_ahead_is_the_one_that_runs():
    seen = []

    def twice(x):
        seen.append(x)
        return {"double": 2 * x}

    program = jitted(twice)
    shapes = program.compile_ahead(jax.ShapeDtypeStruct((3,), jnp.float32))
    assert shapes["double"].shape == (3,)
    np.testing.assert_array_equal(program(jnp.ones(3))["double"], 2 * np.ones(3))
    assert len(seen) == 1


def test_a_program_that_does_not_compile_says_so_where_it_is_called(monkeypatch):
    class Broken:
        def lower(self, *_):
            return self

        def compile(self):
            raise RuntimeError("no memory")

        def __call__(self, *_):
            raise RuntimeError("no memory")

    program = jitted(lambda x: x)
    monkeypatch.setattr(jax, "jit", lambda fun: Broken())
    program.compile_ahead(1.0)
    with pytest.raises(RuntimeError, match="no memory"):
        program(1.0)
