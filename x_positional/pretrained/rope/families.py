"""Defaults of RoPE parameters by `model_type`, for keys that a `config.json` leaves out. Data only.

From the config classes of transformers 5.24. Of multimodal models only the text model is listed, not the vision tower.
"""


def _by_name(groups: dict[float, str]) -> dict[str, float]:
    return {name: value for value, names in groups.items() for name in names.split()}


def _names(text: str) -> set[str]:
    return set(text.split())


THETA = _by_name(
    {
        1e3: "nomic_bert",
        1e4: "afmoe arcee aria_text bamba chameleon cohere2 cohere2_moe codegen dbrx deepseek_v2 deepseek_v3 deepseek_v32 "
        "dia_decoder dia_encoder diffllama doge dots1 esmc eurobert exaone4 exaone_moe falcon falcon_h1 gemma gemma2 glm glm4 "
        "glm4v_moe_text glm4v_text glm_image_text glm_ocr_text kimi_k2 mimo ministral3 "
        "glm4_moe glm4_moe_lite glm_moe_dsa gpt_neox gpt_neox_japanese gptj granite granitemoe granitemoehybrid granitemoeshared "
        "hunyuan_v1_dense hunyuan_v1_moe hyperclovax internlm3 jetmoe llama mimi minicpm3 ministral mistral moonshine "
        "moonshine_streaming moshi nemotron olmo olmo2 olmo_hybrid olmoe persimmon phi phi3 qwen2 qwen2_moe qwen3 qwen3_moe "
        "qwen3_5_moe_text qwen3_5_text qwen3_next recurrent_gemma seed_oss stablelm starcoder2 vaultgemma youtu zamba2",
        2e4: "jina_embeddings_v3",
        1e5: "helium",
        1.5e5: "gpt_oss",
        1.6e5: "gte",
        5e5: "bitnet blt blt_global_transformer blt_local_decoder blt_local_encoder cohere csm ernie4_5 ernie4_5_moe evolla "
        "ernie4_5_vl_moe_text flex_olmo llama4_text mllama_text_model olmo3 paddleocr_vl_text qwen3_vl_moe_text qwen3_vl_text",
        1e6: "cwm emu3_text_model lfm2 lfm2_moe minimax mixtral phimoe qwen2_5_omni_text qwen2_5_vl_text qwen2_vl_text "
        "qwen3_omni_moe_text solar_open",
        2e6: "smollm3",
        5e6: "minimax_m2",
        1e7: "longcat_flash",
        1.2e7: "apertus",
        1e8: "cosmos3_edge_text",
    }
)
"""rope_theta."""

FRACTION = _by_name(
    {
        0.5: "bamba glm glm4 glm4_moe glm4v_moe_text nemotron persimmon phi recurrent_gemma",
        0.25: "gpt_neox qwen3_5_moe_text qwen3_5_text qwen3_next stablelm",
        0.9: "moonshine",
        0.8: "moonshine_streaming",
    }
)
"""Rotated fraction of a head; 1 for all other families."""

LOCAL_GLOBAL = {
    "gemma3_text": (1e4, 1e6),
    "gemma3n_text": (1e4, 1e6),
    "t5gemma2_text": (1e4, 1e6),
    "t5gemma2_decoder": (1e4, 1e6),
    "embedding_gemma2_text": (1e4, 1e6),
    "modernbert": (1e4, 1.6e5),
    "modernbert-decoder": (1e4, 1.6e5),
    "olmo3": (5e5, None),
}
"""(theta of sliding attention, theta of full attention); None: the config's rope_theta."""

SCALED_EVERYWHERE = {"modernbert", "modernbert-decoder"}
"""Families of LOCAL_GLOBAL whose old-style `rope_scaling` applies to sliding attention too."""

SCALED = {"apertus", "cwm", "gpt_oss", "ministral3"}
"""Families that scale their frequencies by default, so a config without RoPE parameters is refused."""

INTERLEAVED = _names(
    "axk1 bailing_hybrid blt blt_global_transformer blt_local_decoder blt_local_encoder codegen cohere cohere2 cohere2_moe "
    "deepseek_v2 deepseek_v3 deepseek_v32 ernie4_5 ernie4_5_moe ernie4_5_vl_moe_text glm glm4 glm4_moe_lite glm4v_text "
    "glm_moe_dsa glm_ocr_text gptj helium kimi_k2 llama4_text "
    "longcat_flash mistral4 moonshine moonshine_streaming roformer youtu"
)
"""Families whose pairs are neighbouring channels."""

SECTIONS: dict[str, tuple[int, ...]] = {
    name: pairs
    for pairs, names in {
        (16, 24, 24): "paddleocr_vl_text qwen2_5_omni_text qwen2_5_vl_text qwen2_vl_text",
        (24, 20, 20): "cosmos3_edge_text qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text",
        (8, 12, 12): "glm4v_moe_text glm4v_text glm_image_text glm_ocr_text",
        (11, 11, 10): "qwen3_5_moe_text qwen3_5_text",
        (22, 22, 20): "ernie4_5_vl_moe_text",
    }.items()
    for name in names.split()
}
"""Default mrope_section: number of pairs for time, height and width."""

INTERLEAVED_SECTIONS = _names(
    "cohere_compass_text cosmos3_edge_text qwen3_5_moe_text qwen3_5_text qwen3_omni_moe_text qwen3_vl_moe_text qwen3_vl_text "
    "qwen4_exp_text"
)
"""Families that assign pairs to position axes in an interleaved order."""

VIDEO_SECTIONS = _names("ernie4_5_vl_moe_text")
"""Families that interleave height and width on the fastest pairs; their sections list height, width, time."""

_CHANNELS = "it splits channels, not pairs, over the position axes, so the two channels of a pair get different angles"
REFUSED = {
    "nanochat": "it rotates by the negative angle",
    "hunyuan_vl": _CHANNELS,
    "hunyuan_vl_text": _CHANNELS,
}
"""Families that `Rope` cannot express, and why."""
