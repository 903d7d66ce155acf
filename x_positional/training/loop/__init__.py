"""A training run: the optimizer steps on their device, logging, validation and saving."""
