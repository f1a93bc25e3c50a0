"""Chain of log-concave conditionals: separate modes by noisy observations."""
