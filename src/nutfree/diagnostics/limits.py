"""Every limit of a verdict, in one place.

R-hat and effective sample sizes are those of Vehtari, Gelman, Simpson, Carpenter and
Bürkner, Bayesian Analysis 16(2), 2021: with R-hat by ranks below 1.01 and an effective
sample of 100 a chain, in the bulk and in the tails, draws are good for every use. Up to
the wider limits means are usable, and tails are not.
"""

#: R-hat up to which chains agree for every use.
GOOD_R_HAT = 1.01
#: R-hat up to which they agree for means.
MAX_R_HAT = 1.05
#: Effective draws of each chain, in the bulk and in the tails, for every use.
GOOD_ESS_PER_CHAIN = 100.0
#: Effective draws of all chains together, in the bulk, for means.
MIN_ESS = 50.0
#: Share of transitions that may diverge.
MAX_DIVERGENT = 0.01
#: Mean square of how far owners stray from what their surrogates expect, over what it
#: is for a Gaussian: 1.1 for logistic rows of which an owner has six, tens and more for
#: networks, and where one owner steps alone, 1 plus what that adds to variances.
MAX_MISFIT = 1.3
#: Draws beyond this have squares that are infinite in single precision.
OVERFLOW = 1.8e19

#: Kernel Stein discrepancy over its floor. Exact draws stay below 1 in 95 % of runs,
#: and below this in 99.9 % even where one direction makes all of it: it is then the
#: root of a chi-squared variable with one degree of freedom, (10.8 / 3.84)^(1/2).
MAX_KSD_RATIO = 1.7
#: Draws that enter the Stein discrepancy, at most.
MAX_STEIN = 1000
#: Probability that exact draws fail the score moments, over all coordinates together.
SCORE_LEVEL = 1e-3
#: Draws whose score is evaluated, at most.
MAX_SCORED = 20_000
#: Rows times draws whose score is evaluated, at most.
MAX_SCORED_ROWS = 2e9

#: Share of the draws or of the mass with which a mode counts.
MISSED_WEIGHT = 0.05
#: Part of that share below which a run has missed the mode.
MISSED_PART = 0.05
#: Probability that exact runs' shares of the modes are called different, in all pairs.
SHARES_LEVEL = 1e-3
#: Standard errors by which a share of the draws differs from that of the mass.
MAX_SHARE_Z = 5.0
#: And the difference that counts.
MIN_SHARE_ERROR = 0.05
#: Squared distance of the draws to the nearest mode that a search finds, in its widths
#: and for each coordinate, from which the approximations there say nothing of them.
FAR_FROM_MODES = 9.0
#: Coordinates up to which modes are searched for.
MAX_SEARCH_DIM = 200

#: Pareto k of the global proposal's importance ratios. Above it they have no mean:
#: there are regions of the posterior that the proposal never enters.
MAX_PARETO_K = 1.0
#: Pareto k above which their mean converges too slowly. An evidence made of them
#: inherits that, and a chain that is right by its other moves does not (Vehtari et al.
#: 2024, arXiv 1507.02646).
MAX_EVIDENCE_PARETO_K = 0.7
#: A predicted error of variances that is worth a word, as a fraction.
MAX_INFLATION = 0.1
