"""Programs that the data are arguments of."""

import jax
import jax.numpy as jnp
import numpy as np

from nutfree.frontends.programs import jitted


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
