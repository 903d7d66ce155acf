"""Training data: texts, tokens and windows."""
