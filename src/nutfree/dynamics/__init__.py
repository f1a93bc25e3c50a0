"""The parts that kernels are composed of."""
