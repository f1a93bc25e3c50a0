"""A split that is none of its density is refused, with what to write."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

import nutfree as nf
from nutfree.frontends.splits import check_split
from nutfree.numerics.proximal import LaplaceTerm
from tests.kernels.bregman.chains import gaussian, real_target

START = {"x": jnp.array([0.5, -1.0])}
TERM = LaplaceTerm(0.0, 0.5)


def term(value=TERM.value, prox=TERM.prox):
    return SimpleNamespace(value=value, prox=prox)


def target(nonsmooth, density=None):
    whole = real_target(gaussian, TERM)
    split = nf.Split(
        lambda values: (gaussian(values["x"]), nonsmooth),
        whole.split.supports,
        whole.split.constrain,
        whole.split.unconstrain,
        whole.split.log_det,
    )
    return nf.Target(density or whole.logdensity_fn, position=START, split=split)


@pytest.mark.parametrize(
    ("nonsmooth", "message"),
    [
        ([TERM], "returns a list of terms"),
        ({"y": TERM}, "'y', which is no site: there are x"),
        ({"x": SimpleNamespace(value=TERM.value)}, "no 'prox'"),
        ({"x": term(value=lambda x: jnp.abs(x) / 0.5)}, r"value .* has the shape \(2,"),
        ({"x": term(prox=lambda x, step: jnp.sum(x))}, r"prox .* has the shape \(\)"),
        ({"x": term(value=lambda x: -TERM.value(x))}, "is not convex"),
        ({"x": term(prox=lambda x, step: 2 * x)}, "not firmly non-expansive"),
        ({}, "differ by more than a constant"),
        ({"x": LaplaceTerm(0.0, 1.0)}, "differ by more than a constant"),
    ],
)
def test_a_split_that_is_none_is_refused(nonsmooth, message):
    with pytest.raises(nf.InvalidData, match=message):
        check_split(target(nonsmooth), START)


def test_a_constant_between_split_and_density_is_none_of_its_business():
    def density(z):
        return gaussian(z["x"]) - TERM.value(z["x"]) + 57.0

    check_split(target({"x": TERM}, density), START)


def test_a_kernel_refuses_it_before_the_first_transition():
    kernel = nf.kernel("myula", target({}))
    with pytest.raises(nf.InvalidData, match="put every term"):
        kernel.init(jax.random.key(0), 0, None, (), {})
