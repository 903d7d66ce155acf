"""The console script `x-positional`."""
