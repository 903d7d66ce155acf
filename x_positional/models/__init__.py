"""Models: a config and the modules that it names."""
