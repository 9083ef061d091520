"""The JAX chip: the decoder traced and compiled by XLA, on the CPU. It proves that decoders never look at a value."""
