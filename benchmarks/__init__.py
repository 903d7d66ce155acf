"""Records of `x-positional bench`, one a machine, and the comparison of two checkouts."""
