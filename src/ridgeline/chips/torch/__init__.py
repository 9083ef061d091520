"""The torch chip: PyTorch, eager, on the CPU. It is here to prove that decoders are bound to no library."""
