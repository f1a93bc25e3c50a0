"""The bias of every biased kernel is of the order that its spec states.

Many chains start from exact draws of the contract's Gaussian, each kernel at values v,
v/2, v/4, … of the option or parameter that the statement is about. The error of the
variance falls by 2^order from one value to the next, once it is small and while it can
be seen. Where a kernel has other biases, which stay, it is the difference that falls.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from nutfree.errors import InvalidOption
from nutfree.hosts import chain
from tests.contract import NUM_WARMUP
from tests.targets import (
    SHORT_PILOT,
    SPECS,
    TEMPLATES,
    gaussian_moments,
    gaussian_target,
    kernel_param,
)

#: Options under which there is a bias on a Gaussian: of control variates there is none.
NOISY = {"gradient": "plain", "sampling": "uniform", "batch_size": 1}
OPTIONS = {
    **SHORT_PILOT,
    **{n: NOISY for n in ("sgld", "psgld", "sghmc", "sgbaoab", "sgnht", "csgld")},
    "ssgmcmc": {"sampling": "uniform", "batch_size": 1, "dropout": 0.5},
    **{f"blackjax.{n}": {"batch_size": 1} for n in ("sgld", "sghmc", "sgnht")},
}
#: Powers of two by which a tuned value is changed, and those for an option.
LADDER, OPTION_LADDER = range(5, -6, -1), range(2, -5, -1)
#: The power of two with which they begin here: larger values err by little as well, and
#: by no order yet.
BEGIN = {("myula", "smoothing"): 3, ("skrock", "step_size"): 1}
#: Chains of a group where an error is small before it is of its order.
MANY_CHAINS = {"skrock": 2048}
#: Beyond this share of the variance the next order counts as well.
LARGEST_ERROR = 0.3
#: What the next order may do to the measured one.
SLACK = 0.35
QUICK = {"ula"}
#: Here the noise of batches, which is alike in every coordinate, is taken up, and what
#: is left of the bias falls faster than is stated.
AT_LEAST = {"sghmc", "sgnht", "blackjax.sgnht"}
#: What this Gaussian cannot show.
NOT_SEEN = {
    ("csgld", "num_steps"): "its two errors are of opposite sign, and cancel",
    ("blackjax.tempered_smc", "num_particles"): "its error is less than the noise",
    ("follmer", "num_particles"): "its reference is a Gaussian, and exact",
    ("ssgmcmc", "dropout"): "coordinates are independent, and nothing is left out",
}


class Design(NamedTuple):
    """How many chains run, and for how many transitions.

    groups
        Groups of chains, each with a pilot of its own; their spread is the noise.
    chains
        Chains of a group.
    settling, measured
        Transitions before the law is looked at, and those over which it is.
    """

    groups: int
    chains: int
    settling: int
    measured: int


def design(spec, options) -> Design:
    if spec.draws == "independent":
        return Design(16, 256, 0, 1)
    if spec.draws == "ensemble":
        return Design(256, 1, 0, options.num_particles)
    chains = MANY_CHAINS.get(spec.name, 128 if spec.name in QUICK else 512)
    return Design(16, chains, 20, 20)


def variances(algorithm, plan, rng_key, **changed):
    """Relative variances of the draws, one for each group."""
    template = TEMPLATES["dict"]()
    target = gaussian_target(template)
    mean, variance = gaussian_moments(template)
    _, unravel = ravel_pytree(template)

    def tuned(rng_key):
        """The kernel's parameters after a short warm-up."""
        pilot_key, init_key, run_key = jax.random.split(rng_key, 3)
        begun = chain.begin(
            algorithm, target, pilot_key, init_key, template, NUM_WARMUP
        )

        def step(state, key):
            return chain.advance(algorithm, target, key, state, NUM_WARMUP)[0], None

        keys = jax.random.split(run_key, NUM_WARMUP)
        return jax.lax.scan(step, begun, keys)[0].adapt_state.params

    def one_chain(rng_key, params):
        start_key, init_key, run_key = jax.random.split(rng_key, 3)
        noise = jax.random.normal(start_key, mean.shape)
        position = unravel(mean + jnp.sqrt(variance) * noise)
        state = algorithm.init(position, target, init_key)

        def step(state, key):
            state, _ = algorithm.kernel(key, state, target, **params)
            return state, ravel_pytree(state.position)[0]

        keys = jax.random.split(run_key, plan.settling + plan.measured)
        return jax.lax.scan(step, state, keys)[1][plan.settling :]

    def one_group(rng_key):
        pilot_key, run_key = jax.random.split(rng_key)
        # one pilot for all groups, but for an ensemble, which is the pilot's
        shared = jax.random.key(0)
        params = tuned(pilot_key if plan.chains == 1 else shared) | changed
        draws = jax.vmap(one_chain, (0, None))(
            jax.random.split(run_key, plan.chains), params
        )
        return jnp.mean((draws - mean) ** 2) / variance

    return jax.lax.map(
        one_group, jax.random.split(rng_key, plan.groups), batch_size=plan.groups
    )


def measured(spec, name) -> list[tuple[float, float, float]]:
    """`(value, relative error of the variance, its standard error)`, in the order in
    which errors should fall."""
    options = OPTIONS.get(spec.name, {})
    algorithm, key = chain.algorithm(spec, options), jax.random.key(2)
    begun = jax.eval_shape(lambda: parameters(algorithm))
    if name in begun:
        tuned = np.asarray(jax.jit(lambda: parameters(algorithm)[name])())
        first = BEGIN.get((spec.name, name), LADDER[0])
        ladder = [k for k in LADDER if k <= first]
        values = [np.asarray(tuned * 2.0**k, tuned.dtype) for k in ladder]
        values = [value for value in values if value > 0]
        plan = design(spec, algorithm.options)
        at = jax.jit(lambda v: variances(algorithm, plan, key, **{name: v}))
    else:
        middle = getattr(algorithm.options, name)
        values = [type(middle)(middle * 2.0**k) for k in OPTION_LADDER]
        values = [value for value in values if is_in_range(spec, {name: value})]

        def at(value):
            algorithm = chain.algorithm(spec, options | {name: value})
            plan = design(spec, algorithm.options)
            return jax.jit(lambda: variances(algorithm, plan, key))()

    return until_small(
        at,
        values if spec.bias_order[name] > 0 else values[::-1],
        2 if len(spec.bias_order) == 1 else 3,
    )


def is_in_range(spec, options) -> bool:
    try:
        spec.checked(options)
    except InvalidOption:
        return False
    return True


def parameters(algorithm):
    template = TEMPLATES["dict"]()
    key = jax.random.key(0)
    target = gaussian_target(template)
    begun = chain.begin(algorithm, target, key, key, template, NUM_WARMUP)
    return begun.adapt_state.params


def until_small(at, values, count):
    """Errors from the largest down, until `count` of them are small."""
    found = []
    for value in values:
        groups = np.asarray(at(value), float)
        noise = np.std(groups, ddof=1) / np.sqrt(len(groups))
        found.append((float(value), np.mean(groups) - 1, noise))
        small = [abs(error) < LARGEST_ERROR for _, error, _ in found[-count:]]
        if small == [True] * count:
            break
    return found


def case(name, parameter):
    reason = NOT_SEEN.get((name, parameter))
    if reason is None:
        return kernel_param(name, parameter, quick=name in QUICK)
    marks = [pytest.mark.slow, pytest.mark.xfail(reason=reason, strict=True)]
    return pytest.param(name, parameter, marks=marks)


@pytest.mark.optimised
@pytest.mark.parametrize(
    ("name", "parameter"),
    [case(n, parameter) for n, spec in SPECS.items() for parameter in spec.bias_order],
)
def test_the_error_of_the_variance_falls_by_the_stated_order(name, parameter):
    """Four standard errors of the logarithm: one false alarm in 10,000."""
    order = SPECS[name].bias_order[parameter]
    errors = measured(SPECS[name], parameter)
    for value, error, noise in errors:
        print(f"{name} {parameter}={value:.4g}: {error:+.4f} ± {noise:.4f}")
    if len(SPECS[name].bias_order) > 1:
        (value, *first), (_, *second), (_, *third) = errors[-3:]
        falls = [
            (a[0] - b[0], np.hypot(a[1], b[1]))
            for a, b in ((first, second), (second, third))
        ]
        (large, noise), (small, next_noise), next_value = *falls, errors[-2][0]
    else:
        (value, large, noise), (next_value, small, next_noise) = errors[-2:]
    assert max(abs(large), abs(small)) < LARGEST_ERROR, "no error that is small"
    if name in AT_LEAST:
        least = np.log2(abs(large) / (abs(small) + 4 * next_noise))
        assert abs(large) > 4 * noise
        assert least / np.log2(value / next_value) > order - SLACK
        return
    if order == -np.inf:
        # at once from what can be seen to what cannot, or by more than a power
        assert abs(small) < 4 * next_noise or abs(small) < abs(large) / 8
        return
    uncertainty = np.hypot(noise / large, next_noise / small) / np.log(2)
    assert uncertainty < 0.25, "no error that can be seen"
    measured_order = np.log2(abs(large / small)) / np.log2(value / next_value)
    assert measured_order == pytest.approx(order, abs=SLACK + 4 * uncertainty)
