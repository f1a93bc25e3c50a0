"""A roof in a photograph, behind noise and a blur: total variation of a real picture.

64 × 64 grey values between 0 and 1, of the Summer Palace that scikit-learn ships, every
third pixel of a part of it, with Gaussian noise of sd 0.1, and blurred before that if
`data(blur=...)` says so.

Data: `sklearn.datasets.load_sample_image("china.jpg")`, by Danielle Tunstall (CC BY).
Model: total variation, the sum of the norms of the gradient at every pixel over
`scale`, and a wide Gaussian that makes it proper.
For NUTS: a kink at every pixel that is like its neighbours; it takes hundreds of
gradients a draw.
Family: Bregman proximal. 4096 dimensions.
"""

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

SIZE, CORNER, EVERY = 64, (90, 240), 3


def blurred(x, width):
    """The picture after a Gaussian blur, its sd in pixels; it goes on periodically."""
    if width == 0:
        return x
    frequencies = [jnp.fft.fftfreq(n) for n in x.shape]
    squared = frequencies[0][:, None] ** 2 + frequencies[1] ** 2
    damped = jnp.exp(-2 * (jnp.pi * width) ** 2 * squared)
    return jnp.fft.ifft2(damped * jnp.fft.fft2(x)).real


def model(y=None, noise=0.1, scale=0.1, blur=0.0):
    from nutfree import nonsmooth  # all that is not NumPyro's

    shape = (SIZE, SIZE) if y is None else y.shape
    x = numpyro.sample("x", dist.Normal(0.5, 1).expand(shape).to_event(2))
    nonsmooth("tv", x, scale, norm="tv")
    numpyro.sample("y", dist.Normal(blurred(x, blur), noise).to_event(2), obs=y)


def truth() -> np.ndarray:
    """The picture as it is, of shape `(64, 64)`."""
    from sklearn.datasets import load_sample_image

    grey = load_sample_image("china.jpg").mean(-1) / 255
    rows, columns = (slice(c, c + EVERY * SIZE, EVERY) for c in CORNER)
    return grey[rows, columns].astype(np.float32)


def data(blur: float = 0.0, noise: float = 0.1, seed: int = 0) -> dict:
    clear = truth()
    disturbed = noise * np.random.default_rng(seed).normal(size=clear.shape)
    y = np.asarray(blurred(jnp.asarray(clear), blur)) + disturbed
    given = {"y": y.astype(np.float32), "noise": noise}
    return given | ({"blur": blur} if blur else {})
