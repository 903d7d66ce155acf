"""Sampling with and without the key/value cache: the same tokens, at different speeds.

python examples/sample_with_cache.py [--quick]
"""

import argparse
import time

import torch

from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper


def main(arguments: list[str] | None = None) -> tuple[bool, float]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer tokens from a smaller model")
    new, depth = (60, 2) if parser.parse_args(arguments).quick else (250, 4)
    torch.manual_seed(0)
    layers = Decoder(dim=256, depth=depth, heads=8, attn_dim_head=32, attn_kv_heads=2, rotary_pos_emb=True)
    model = AutoregressiveWrapper(TransformerWrapper(num_tokens=256, max_seq_len=512, attn_layers=layers))

    prompts = [
        torch.randint(0, 256, (length,)) for length in (5, 40, 17)
    ]  # of different lengths: no padding or mask needed
    options = {"temperature": 0.8, "filter_logits_fn": "top_p", "filter_kwargs": {"thres": 0.9}, "seed": 1}
    model.generate(prompts, 2, **options)  # the first call of a process is slower

    drawn, seconds = {}, {}
    for cache_kv in (True, False):
        print(f"{new} tokens for each of {len(prompts)} prompts, cache_kv={cache_kv} ...", end=" ", flush=True)
        began = time.perf_counter()
        drawn[cache_kv] = model.generate(prompts, new, cache_kv=cache_kv, **options)
        seconds[cache_kv] = time.perf_counter() - began
        print(f"{seconds[cache_kv]:.2f} s, {new * len(prompts) / seconds[cache_kv]:.0f} tokens/s")
    same, faster = torch.equal(drawn[True], drawn[False]), seconds[False] / seconds[True]
    print(f"the tokens are {'the same' if same else 'NOT the same'}; the cache makes it {faster:.1f} times as fast")

    first, cache = model.generate(prompts, 20, return_cache=True, **options)
    more = model.generate([[1, 2, 3], [4], [5, 6]], 10, cache=cache, **options)  # the next turn; nothing is recomputed
    print(f"{first.shape[1]} tokens, then {more.shape[1]} more in a second turn, from the same cache:", end=" ")
    print(f"{cache.nbytes() / 2**20:.1f} MiB")
    for token in model.stream(prompts[0], 5, **options):  # one by one, as they are drawn
        print("streamed", token.item(), flush=True)
    return same, faster


if __name__ == "__main__":
    main()
