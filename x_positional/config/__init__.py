"""A model as data: validated configs, keyword flags and the validator."""
