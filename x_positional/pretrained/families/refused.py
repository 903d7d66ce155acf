"""Published models that need a mechanism which the block lacks, by `model_type`, and which mechanism that is. Data only."""


def _by_name(groups: dict[str, str]) -> dict[str, str]:
    return {name: reason for reason, names in groups.items() for name in names.split()}


REFUSED = _by_name(
    {
        "it has linear attention (a gated delta rule)": "kimi_linear olmo_hybrid qwen3_5 qwen3_5_moe "
        "qwen3_5_moe_text qwen3_5_text qwen3_next",
        "it has linear attention (lightning attention)": "minimax",
        "it has state space layers (Mamba)": "bamba falcon_h1 falcon_mamba granitemoehybrid jamba mamba mamba2 "
        "nemotron_h zamba zamba2",
        "it has recurrent layers": "recurrent_gemma rwkv xlstm",
        "it has short convolutions": "lfm2 lfm2_moe",
        "an indexer selects the keys of each query": "deepseek_v32 glm_moe_dsa minimax_m3_vl minimax_m3_vl_text",
        "its keys are compressed, and an indexer selects those of each query": "deepseek_v4",
        "each of its layers has an input of its own": "gemma3n gemma3n_text gemma4 gemma4_text",
        "its attention is the difference of two softmaxes": "diffllama",
        "its router selects two experts one after the other, each with a softmax over the scores near the largest one": "phimoe",
        "the number of key heads differs by layer type": "mimo_v2_flash",
        "all of its layers are one layer, whose parameters are shared": "albert",
        "its bias of distances has two axes and its own numbers for the cls token": "beit data2vec-vision",
        "its keys and their positions are projected without a bias, queries and values with one": "deberta",
    }
)
"""`model_type` -> why such models cannot be read."""
