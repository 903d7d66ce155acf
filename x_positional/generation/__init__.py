"""Sampling, prompts and the decoding loop."""
