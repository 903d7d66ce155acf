"""Random input from strangers: configs, files and calls. A short form by default, all of it with X_POSITIONAL_ALL_DRAWS=1."""
