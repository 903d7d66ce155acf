"""Training data: documents, tokenizers, and the windows that each step takes from the tokens."""
