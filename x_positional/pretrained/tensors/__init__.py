"""Published tensors: files, layouts, and loading them into a model."""
