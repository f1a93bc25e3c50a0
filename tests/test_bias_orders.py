"""The bias of every biased kernel is of the order that its spec states.

Many chains start from exact draws of the contract's Gaussian and run at values v,
v/2, v/4, … of the option or parameter. The error of the variance falls by 2^order from
one value to the next, once it is small and while it can be seen.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from nutfree.hosts import chain
from tests.contract import NUM_WARMUP, Program
from tests.targets import SHORT_PILOT, SPECS, TEMPLATES, gaussian_moments, kernel_param

NUM_GROUPS, CHAINS_PER_GROUP = 16, 128
#: Transitions before the law is looked at, and those over which it is.
NUM_SETTLING, NUM_MEASURED = 20, 20
#: Powers of two by which a tuned value is changed, and those for a static option.
LADDER, STATIC_LADDER = range(5, -5, -1), range(1, -4, -1)
#: Beyond this share of the variance the next order counts as well.
LARGEST_ERROR = 0.3
#: What the next order may do to the measured one.
SLACK = 0.35

QUICK = {"ula", "blackjax.sgld"}


def runner(algorithm, target):
    """`run(params, rng_key) -> variances`, one for each group of chains, relative."""
    mean, variance = gaussian_moments(TEMPLATES["dict"]())
    _, unravel = ravel_pytree(TEMPLATES["dict"]())

    def one_chain(rng_key, params):
        start_key, init_key, run_key = jax.random.split(rng_key, 3)
        noise = jax.random.normal(start_key, mean.shape)
        position = unravel(mean + jnp.sqrt(variance) * noise)
        state = algorithm.init(position, target, init_key)

        def step(state, key):
            state, _ = algorithm.kernel(key, state, target, **params)
            return state, ravel_pytree(state.position)[0]

        keys = jax.random.split(run_key, NUM_SETTLING + NUM_MEASURED)
        return jax.lax.scan(step, state, keys)[1][NUM_SETTLING:]

    def run(params, rng_key):
        keys = jax.random.split(rng_key, (NUM_GROUPS, CHAINS_PER_GROUP))
        in_groups = jax.vmap(jax.vmap(one_chain, (0, None)), (0, None))
        draws = in_groups(keys, params)
        return jnp.mean((draws - mean) ** 2, axis=(1, 2, 3)) / variance

    return run


def measured(spec, name) -> list[tuple[float, float, float]]:
    """`(value, relative error of the variance, its standard error)`, the last two of
    which are below `LARGEST_ERROR`, or all that there are."""
    program = Program(spec)
    target, key = program.target(), jax.random.key(2)
    keys = jax.random.split(jax.random.key(1), NUM_WARMUP)
    params = program.run(program.first, keys)[0].adapt_state.params
    if name in params:
        tuned = np.asarray(params[name])
        values = [np.asarray(tuned * 2.0**k, tuned.dtype) for k in LADDER]
        run = runner(program.algorithm, target)
        at = jax.jit(lambda value: run({**params, name: value}, key))
    else:
        default = getattr(program.algorithm.options, name)
        values = [type(default)(default * 2.0**k) for k in STATIC_LADDER]

        def at(value):
            given = {**SHORT_PILOT.get(spec.name, {}), name: value}
            return static_run(spec, given, target, key)

    found = []
    for value in values if spec.bias_order[name] > 0 else reversed(values):
        variances = np.asarray(at(value), float)
        noise = np.std(variances, ddof=1) / np.sqrt(len(variances))
        found.append((float(value), np.mean(variances) - 1, noise))
        small = [abs(error) < LARGEST_ERROR for _, error, _ in found]
        if small[-2:] == [True, True]:
            break
    return found


def static_run(spec, options, target, key):
    algorithm = chain.algorithm(spec, options)

    def run(rng_key):
        pilot_key, init_key, run_key = jax.random.split(rng_key, 3)
        begun = chain.begin(
            algorithm, target, pilot_key, init_key, TEMPLATES["dict"](), 0
        )
        return runner(algorithm, target)(begun.adapt_state.params, run_key)

    return jax.jit(run)(key)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        kernel_param(n, parameter, quick=n in QUICK)
        for n, spec in SPECS.items()
        for parameter in spec.bias_order
    ],
)
def test_the_error_of_the_variance_falls_by_the_stated_order(name, parameter):
    """Four standard errors of the logarithm: one false alarm in 10,000."""
    order = SPECS[name].bias_order[parameter]
    errors = measured(SPECS[name], parameter)
    for value, error, noise in errors:
        print(f"{name} {parameter}={value:.4g}: {error:+.4f} ± {noise:.4f}")
    (value, large, noise), (next_value, small, next_noise) = errors[-2:]
    assert max(abs(large), abs(small)) < LARGEST_ERROR, "no error that is small"
    uncertainty = np.hypot(noise / large, next_noise / small) / np.log(2)
    assert uncertainty < 0.25, "no error that can be seen"
    measured_order = np.log2(large / small) / np.log2(value / next_value)
    assert measured_order == pytest.approx(order, abs=SLACK + 4 * uncertainty)
