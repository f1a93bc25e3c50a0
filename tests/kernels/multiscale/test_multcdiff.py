"""MultCDiff, and the options that it shares with MultALMC.

Tolerances are four standard errors or more; with fixed seeds, false alarms are below
1e-3 for the file.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nutfree as nf
from nutfree.errors import InvalidOption
from nutfree.kernels.multiscale import multalmc, multcdiff
from nutfree.target import Target
from tests.chains import sample
from tests.paths.oracles import RING, assert_ring

MODULES = {"multalmc": multalmc, "multcdiff": multcdiff}


@pytest.mark.slow
def test_modes_have_their_weights():
    run = {"num_warmup": 20, "num_samples": 1000, "spec": multcdiff.SPEC}
    states, info, _ = sample(RING, **run)
    assert_ring(states, info)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("multalmc", {"dynamics": "underdamped"}),
        ("multalmc", {"base": "student_t"}),
        ("multalmc", {"dynamics": "underdamped", "base": "student_t"}),
        ("multalmc", {"fast": "sk_rock"}),
        ("multalmc", {"schedule": "cosine"}),
        ("multcdiff", {"dynamics": "underdamped"}),
        ("multcdiff", {"base": "student_t"}),
        ("multcdiff", {"fast": "sk_rock"}),
        ("multcdiff", {"schedule": "linear"}),
    ],
    ids=str,
)
def test_every_option_leaves_the_modes_their_weights(name, options):
    run = {"num_warmup": 20, "num_samples": 1000, "spec": MODULES[name].SPEC}
    states, info, _ = sample(RING, **run, **options)
    assert_ring(states, info)


def test_student_t_base_is_refused_for_underdamped_dynamics():
    options = multcdiff.Options(base="student_t", dynamics="underdamped")
    with pytest.raises(InvalidOption, match="multalmc"):
        multcdiff.build_kernel(options)


def test_narrow_base_is_told_to_the_user():
    kernel = nf.kernel("multcdiff", RING, num_starts=16, base_scale=0.1)
    with pytest.warns(UserWarning, match="The base is narrow: base_scale is 0.1"):
        kernel.init(jax.random.key(0), 0, None, (), {})
    assert multcdiff.SPEC.concerns({"base_scale": 1.0}) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["multalmc", pytest.param("multcdiff", marks=pytest.mark.slow)]
)
def test_memory_does_not_grow_with_the_path(name):
    module = MODULES[name]
    target = Target(lambda x: -0.5 * jnp.sum(x**2), jnp.zeros(1000))
    warmup = module.warmup(module.Options(num_starts=2, num_descent_steps=1))
    adapt = jax.eval_shape(
        lambda key: warmup.init(key, target.position, target, 0), jax.random.key(0)
    )
    state = jax.eval_shape(lambda x: module.init(x, target), target.position)

    def memory(**numbers):
        kernel = module.build_kernel(module.Options(**numbers))
        run = jax.jit(lambda key, state, params: kernel(key, state, target, **params))
        compiled = run.lower(jax.random.key(0), state, adapt.params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    few = memory(num_levels=4, num_fast_steps=2)
    many = memory(num_levels=400, num_fast_steps=50)
    # the levels themselves, and what they are made of
    assert many - few < 400 * 4 * 20
    # a few vectors of the size of the 64 modes, and of the position
    assert many < 40 * 64 * 1000 * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODULES))
def test_a_thousand_dimensions(name):
    sd = jnp.logspace(-1, 1, 1000)
    target = Target(lambda x: -0.5 * jnp.sum(((x - 3.0) / sd) ** 2), jnp.zeros(1000))
    run = {
        "num_warmup": 0,
        "num_samples": 200,
        "num_starts": 8,
        "spec": MODULES[name].SPEC,
    }
    states, info, _ = sample(target, **run)
    z = np.asarray((states.position - 3.0) / sd)
    assert np.isfinite(z).all()
    assert not info.is_divergent.any()
    # the largest of a thousand means is five standard errors out once in 2,000 runs
    assert (abs(z.mean(0)) < 5 / 200**0.5).all()
    assert abs(z.std(0).mean() - 1) < 0.03
