"""Speed and memory of this package and its peers: the same weights, interleaved, beside what the machine allows."""
