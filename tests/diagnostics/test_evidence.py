"""Evidence by bridge sampling, and what the importance ratios say of a proposal.

Tolerances are three standard errors of the estimate itself, with fixed seeds.
"""

import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import cauchy, multivariate_normal, norm, t

import nutfree as nf
from nutfree.diagnostics.evidence import bridge, pareto_k, pooled_bridge


def autoregressive(rng, size, rho=0.9):
    x, noise = np.zeros(size), rng.normal(size=size)
    for i in range(1, size):
        x[i] = rho * x[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return x


def ratio(x):
    """log pi - log q, for pi five times a standard normal, and q a Student t."""
    return np.log(5) + norm.logpdf(x) - t(4).logpdf(x)


def test_standard_error_is_the_spread_of_repeated_estimates_of_slow_chains():
    """One standard error of the spread of 60 estimates is 9 %."""
    rng = np.random.default_rng(0)
    found = [
        bridge(ratio(autoregressive(rng, 1000)), ratio(rng.standard_t(4, 500)))
        for _ in range(60)
    ]
    estimates = np.array([b.log_evidence for b in found])
    spread = estimates.std(ddof=1)
    assert abs(estimates.mean() - np.log(5)) < 4 * spread / 60**0.5
    assert 0.6 < np.mean([b.log_evidence_se for b in found]) / spread < 1.5


def test_no_common_ground_has_no_evidence():
    found = bridge(np.zeros(10), np.full(10, -np.inf))
    assert np.isnan(found.log_evidence)


def test_a_chain_that_misses_a_mode_shows_in_the_standard_error():
    rng = np.random.default_rng(1)
    whole = [ratio(rng.normal(size=500)) for _ in range(3)]
    half = ratio(rng.normal(size=500)) - np.log(2)
    proposals = np.stack([ratio(rng.standard_t(4, 500)) for _ in range(4)])
    proposals[3] -= np.log(2)
    found = pooled_bridge(np.stack([*whole, half]), proposals[..., None])
    assert found.log_evidence_se > 0.1


def test_pareto_k_tells_a_proposal_with_too_light_a_tail():
    rng = np.random.default_rng(2)
    x = rng.standard_t(4, size=(2, 4000, 1))
    assert pareto_k(ratio(x)) < 0.5
    assert pareto_k(cauchy.logpdf(x) - t(4).logpdf(x)) > 0.7


X = np.random.default_rng(3).normal(size=(12, 2)).astype(np.float32)
Y = (X @ [1.0, -0.5] + 0.5 * np.random.default_rng(4).normal(size=12)).astype(
    np.float32
)


def regression(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 2).expand([2]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 0.5), obs=y)


@pytest.fixture(scope="module")
def tree():
    kernel = nf.kernel("multiscale", regression, num_starts=32, num_modes=4)
    return nf.sample(
        kernel,
        X,
        Y,
        num_warmup=150,
        num_samples=500,
        num_chains=2,
        progress_bar=False,
    )


def test_evidence_of_a_conjugate_regression_is_the_known_one(tree):
    attrs = tree["posterior"].attrs
    covariance = 4 * X @ X.T + 0.25 * np.eye(12)
    exact = multivariate_normal(np.zeros(12), covariance).logpdf(Y)
    assert attrs["log_evidence_se"] < 0.05
    assert abs(attrs["log_evidence"] - exact) < 3 * attrs["log_evidence_se"]


@pytest.mark.slow
def test_report_sets_a_run_aside_whose_proposal_does_not_cover_the_posterior(tree):
    """And has a word on the evidence where the tail is heavy, but not as heavy."""
    from nutfree.report.judge import judge

    target = nf.model_target(regression, (X, Y), {})
    sound = judge({"it": tree}, target)["it"]
    assert sound.sound, str(sound)
    assert not any("evidence" in caveat for caveat in sound.caveats)

    def judged(k):
        """Ratios e^(k E) of an exponential E have Pareto shape k."""
        uncovered = tree.copy(deep=True)
        ratios = uncovered["sample_stats"]["proposal_log_importance"]
        ratios.values[:] = k * np.random.default_rng(0).exponential(size=ratios.shape)
        return judge({"it": uncovered}, target)["it"]

    heavy = judged(0.85)
    assert heavy.sound
    assert any("evidence may be off" in caveat for caveat in heavy.caveats)
    heavier = judged(1.5)
    assert any("does not cover the posterior" in p for p in heavier.problems)
