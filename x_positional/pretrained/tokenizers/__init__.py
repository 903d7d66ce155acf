"""Tokenizers and chat templates of published models."""
