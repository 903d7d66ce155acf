"""Speed and memory against x-transformers on the same shapes, in one run."""
