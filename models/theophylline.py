"""Theophylline: the concentration of a drug in the blood after a dose by mouth.

One compartment with absorption of first order (Bateman's function),

    c(t) = (dose ka / (V (ka - ke))) (exp(-ke t) - exp(-ka t)),    ke = clearance / V,

and ka above ke, or the two may change places. The errors are normal.

Model: Pinheiro and Bates (2000), *Mixed-Effects Models in S and S-PLUS*, section 8.2.
Data: the first of twelve subjects, R's ``datasets::Theoph``; Boeckmann, Sheiner and
Beal (1994), *NONMEM Users Guide*; published figures.
For NUTS: easy.
Family: a smooth curve with correlated parameters. 4 dimensions.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist


def model(dose, hours, concentration=None):
    clearance = numpyro.sample("clearance", dist.LogNormal(-3.0, 1.0))
    volume = numpyro.sample("volume", dist.LogNormal(-0.7, 1.0))
    faster = numpyro.sample("faster", dist.LogNormal(0.0, 1.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(2.0))
    elimination = clearance / volume
    absorption = elimination + faster
    factor = dose * absorption / (volume * faster)
    falling = jnp.exp(-elimination * hours) - jnp.exp(-absorption * hours)
    with numpyro.plate("samples", len(hours)):
        mean = factor * falling
        numpyro.sample("concentration", dist.Normal(mean, sigma), obs=concentration)


def data() -> dict[str, float | np.ndarray]:
    """Dose in mg/kg, hours since then, and concentration in mg/l."""
    return {
        "dose": 4.02,
        "hours": np.array(
            [0.0, 0.25, 0.57, 1.12, 2.02, 3.82, 5.1, 7.03, 9.05, 12.12, 24.37]
        ),
        "concentration": np.array(
            [0.74, 2.84, 6.57, 10.5, 9.66, 8.58, 8.36, 7.47, 6.89, 5.94, 3.28]
        ),
    }
