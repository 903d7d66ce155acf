"""The decoding step as one graph: compiled, replayed on a GPU, or exported as a program."""
