"""config.json of published repositories, as far as it is read."""

from typing import Any

_QWEN2_5_VL: dict[str, Any] = {
    "model_type": "qwen2_5_vl",
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "eos_token_id": 151645,
    "rope_theta": 1e6,
    "rms_norm_eps": 1e-6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
}
_QWEN2_5_VISION: dict[str, Any] = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
# 3,754,622,976 parameters
QWEN2_5_VL_3B: dict[str, Any] = {
    **_QWEN2_5_VL,
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "num_hidden_layers": 36,
    "num_attention_heads": 16,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "vocab_size": 151936,
    "vision_config": {**_QWEN2_5_VISION, "out_hidden_size": 2048},
}
# 8,292,166,656 parameters
QWEN2_5_VL_7B: dict[str, Any] = {
    **_QWEN2_5_VL,
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "tie_word_embeddings": False,
    "vocab_size": 152064,
    "vision_config": {**_QWEN2_5_VISION, "out_hidden_size": 3584},
}
# 7,063,427,072 parameters; what a published LLaVA leaves out are the defaults of its parts
LLAVA_1_5_7B: dict[str, Any] = {
    "model_type": "llava",
    "image_token_index": 32000,
    "pad_token_id": 32001,
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-5,
        "vocab_size": 32064,
    },
    "vision_config": {
        "model_type": "clip_vision_model",
        "hidden_size": 1024,
        "image_size": 336,
        "intermediate_size": 4096,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "patch_size": 14,
        "projection_dim": 768,
    },
    "vision_feature_layer": -2,
    "vision_feature_select_strategy": "default",
}
SHAPES = {
    "qwen2.5-vl-3b": QWEN2_5_VL_3B,
    "qwen2.5-vl-7b": QWEN2_5_VL_7B,
    "llava-1.5-7b": LLAVA_1_5_7B,
}
