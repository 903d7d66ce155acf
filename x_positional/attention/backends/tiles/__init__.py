"""Flash attention on a CPU, by tiles of queries and keys (Dao et al. 2022, arXiv:2205.14135), with biases and gradients.

The scores of one tile at a time are computed in a buffer that fits a core's cache: biases and the softmax run in place. The
forward pass keeps a running maximum and sum for each query (online softmax), or calls torch's kernel, and stores each query's
log-sum-exp, from which the backward pass recomputes the probabilities. A transform of whole rows of scores takes tiles that span
all keys. Under a causal mask or in a window only tiles with a visible key are computed.

B batch, T query tokens, S key tokens, H heads, D head dim, E value dim; a tile has G heads, R queries and W keys.
"""
