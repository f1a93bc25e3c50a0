"""Where a kernel runs: NumPyro's `MCMC`, BlackJAX's loop."""
