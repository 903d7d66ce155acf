"""One round on a CUDA machine without a network: correctness on the device first, then speed as fractions of its limits."""
