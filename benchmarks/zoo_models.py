"""What the zoo holds: transformers classes in tiny configurations (built offline), and hand-written families."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.models.auto import modeling_auto

from benchmarks import zoo_families

BATCH, TOKENS, VOCABULARY, WAVE = 3, 8, 97, 4000

#: Configuration fields -> tiny values, set wherever a default configuration has a number under that name.
TINY: dict[str, int] = {
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "embed_dim",
            "embedding_size",
            "dim",
            "hidden_dim",
            "projection_dim",
        ),
        32,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "num_encoder_layers",
            "num_decoder_layers",
        ),
        2,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "decoder_attention_heads",
            "num_key_value_heads",
        ),
        4,
    ),
    **dict.fromkeys(
        (
            "intermediate_size",
            "d_ff",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "n_inner",
            "d_inner",
        ),
        48,
    ),
    **dict.fromkeys(
        (
            "moe_intermediate_size",
            "shared_expert_intermediate_size",
            "ffn_hidden_size",
        ),
        24,
    ),
    **dict.fromkeys(
        (
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
        ),
        4,
    ),
    **{"head_dim": 8, "d_kv": 8, "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 8, "v_head_dim": 8},
    **{"qk_nope_head_dim": 8, "num_experts_per_tok": 2, "moe_topk": 2, "n_group": 1, "topk_group": 1},
    **{"first_k_dense_replace": 1, "vocab_size": VOCABULARY, "vocab_size_per_layer_input": VOCABULARY},
    **{"max_position_embeddings": 64, "n_positions": 64, "max_sequence_length": 64, "n_ctx": 64, "seq_length": 64},
    **{"image_size": 32, "patch_size": 8, "num_channels": 3, "type_vocab_size": 2, "num_labels": 5},
    **{"sliding_window": 16, "window_size": 4, "attention_window": 4, "state_size": 8, "conv_kernel": 4, "expand": 2},
    **{"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "num_feat_extract_layers": 2},
    **{"hidden_size_per_layer_input": 8, "mamba_d_state": 8, "mamba_n_heads": 8, "mamba_d_head": 8, "layers": 2},
    **{"neck_hidden_sizes": 16, "rotary_dim": 4, "lru_width": 32, "attention_hidden_size": 32, "per_layer_dim": 8},
    **{"axial_pos_embds_dim": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "sep_token_id": 2},
    **{
        "entity_vocab_size": 50,
        "entity_emb_size": 16,
        "decoder_start_token_id": 1,
        "unk_token_id": 3,
        "cls_token_id": 1,
        "mask_token_id": 4,
    },
    **{"num_mel_bins": 16, "max_length": 64, "max_source_positions": 64, "max_target_positions": 64},
}
#: Set where they are None as well: without a padding token a head takes one text at a time.
FILLED = frozenset(("pad_token_id", "head_dim", "num_experts_per_tok", "n_group", "topk_group")) | {
    "num_key_value_heads",
    "n_routed_experts",
}
#: How the names of the other special tokens end.
TOKEN_NUMBERS = ("_token_id", "_token_index")
#: The same for one architecture: what its own shapes ask for.
OWN: dict[str, dict[str, Any]] = {
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "regnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "groups_width": 8},
    "bit": {"embedding_size": 32, "hidden_sizes": [32, 64], "depths": [1, 1], "num_groups": 4},
    "convnext": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "convnextv2": {"num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]},
    "focalnet": {
        "embed_dim": 8,
        "hidden_sizes": [8, 16],
        "depths": [1, 1],
        "focal_levels": [2, 2],
        "patch_size": 4,
        "focal_windows": [3, 3],
    },
    "swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "patch_size": 4},
    "swinv2": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "patch_size": 4},
    "donut-swin": {"embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "patch_size": 4},
    "dinat": {"embed_dim": 8},
    "poolformer": {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1]},
    "segformer": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "decoder_hidden_size": 16,
    },
    "pvt": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "patch_sizes": [4, 2, 2, 2],
    },
    "pvt_v2": {
        "hidden_sizes": [8, 8, 16, 16],
        "depths": [1, 1, 1, 1],
        "num_attention_heads": [1, 1, 2, 2],
        "patch_sizes": [7, 3, 3, 3],
    },
    "levit": {
        "hidden_sizes": [16, 24, 32],
        "num_attention_heads": [2, 2, 2],
        "depths": [1, 1, 1],
        "key_dim": [8, 8, 8],
        "image_size": 64,
        "patch_size": 16,
    },
    "mobilevit": {
        "hidden_sizes": [16, 24, 32],
        "neck_hidden_sizes": [8, 8, 16, 16, 16, 16, 32],
        "patch_size": 2,
        "image_size": 64,
    },
    "mobilevitv2": {"patch_size": 2, "image_size": 64},
    "efficientnet": {"image_size": 64, "width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320},
    "swiftformer": {"depths": [1, 1, 1, 1], "embed_dims": [8, 8, 16, 16], "image_size": 64},
    "hiera": {
        "embed_dim": 8,
        "depths": [1, 1, 1],
        "num_heads": [1, 2, 2],
        "patch_size": [7, 7],
        "image_size": [64, 64],
        "query_stride": [2, 2],
        "masked_unit_size": [4, 4],
        "num_query_pool": 2,
    },
    "albert": {"embedding_size": 16},
    "electra": {"embedding_size": 16},
    "convbert": {"embedding_size": 32, "conv_kernel_size": 3},
    "mobilebert": {"hidden_size": 32, "embedding_size": 16, "intra_bottleneck_size": 16},
    "squeezebert": {"embedding_size": 32},
    "deberta-v2": {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    "longformer": {"attention_window": [4, 4]},
    "big_bird": {"attention_type": "original_full"},
    "funnel": {"block_sizes": [1, 1], "d_head": 8, "num_hidden_layers": None},
    "cvt": {"embed_dim": [8, 16, 32], "num_heads": [1, 2, 2], "depth": [1, 1, 3]},
    "reformer": {"axial_pos_shape": [4, 2], "axial_pos_embds_dim": [16, 16], "attn_layers": ["local", "lsh"]},
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 0, "is_folding_model": False},
    "xlnet": {"d_head": 8, "max_position_embeddings": None},
    "prophetnet": {"num_hidden_layers": None},
    "t5": {"decoder_start_token_id": 0},
    "lfm2_moe": {"layer_types": ["full_attention", "conv"]},
    "layoutlmv3": {"coordinate_size": 4, "shape_size": 8},
    "lilt": {"hidden_size": 48},
    "zaya": {"num_experts_per_tok": 1},
    "musicgen_decoder": {"num_codebooks": 1},
    "musicgen_melody_decoder": {"num_codebooks": 1},
    "wav2vec2-bert": {"feature_projection_input_dim": 16},
    "dpt": {
        "num_hidden_layers": 4,
        "backbone_out_indices": [0, 1, 2, 3],
        "neck_hidden_sizes": [8, 8, 16, 16],
        "fusion_hidden_size": 16,
    },
    "fsmt": {"src_vocab_size": VOCABULARY, "tgt_vocab_size": VOCABULARY},
    "flaubert": {"emb_dim": 32, "n_words": VOCABULARY},
    "xlm": {"emb_dim": 32, "n_words": VOCABULARY},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "xmod": {"languages": ["en_XX"], "default_language": "en_XX"},
    "perceiver": {"num_latents": 8, "d_latents": 32, "num_self_attends_per_block": 1},
    "canine": {
        "downsampling_rate": 2,
        "upsampling_kernel_size": 3,
        "local_transformer_stride": 8,
        "num_hash_buckets": 31,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 8},
    "wav2vec2": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "mask_time_prob": 0.0},
    "hubert": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "mask_time_prob": 0.0},
    "data2vec-audio": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "mask_time_prob": 0.0},
    "wavlm": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "mask_time_prob": 0.0},
    "unispeech": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "mask_time_prob": 0.0},
    "unispeech-sat": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "mask_time_prob": 0.0},
    "sew-d": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "squeeze_factor": 1},
    "sew": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2], "squeeze_factor": 1},
    "wav2vec2-conformer": {"conv_dim": [16, 16], "conv_kernel": [10, 3], "conv_stride": [5, 2]},
}
#: Heads in the order in which one is chosen for each architecture: what the class takes.
HEADS: tuple[tuple[str, str], ...] = (
    ("MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES", "pixels"),
    ("MODEL_FOR_MASKED_LM_MAPPING_NAMES", "tokens"),
    ("MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES", "tokens"),
    ("MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES", "tokens"),
    ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "tokens"),
    ("MODEL_FOR_AUDIO_CLASSIFICATION_MAPPING_NAMES", "wave"),
    ("MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING_NAMES", "pixels"),
    ("MODEL_FOR_DEPTH_ESTIMATION_MAPPING_NAMES", "pixels"),
    ("MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES", "pixels"),
    ("MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES", "pairs"),
)


@dataclass(frozen=True)
class Case:
    """One network: how to make it, and what it takes.

    Attributes:
        name: Class, or family.
        make: Returns the module in eval mode and its inputs.
    """

    name: str
    make: Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


class Answer(nn.Module):
    """A transformers model with positional inputs, and the tensor of its answer that a user looks at."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *inputs: Tensor) -> Tensor:
        """Return logits, or whatever comes first."""
        arguments: dict[str, Any] = dict(zip(self.names, inputs, strict=True))
        if "use_cache" in inspect.signature(self.model.forward).parameters:
            arguments["use_cache"] = False
        found = self.model(**arguments)
        return found.logits if getattr(found, "logits", None) is not None else found[0]


def cases() -> Iterator[Case]:
    """Yield every network of the zoo, the families first."""
    for name, family in zoo_families.FAMILIES.items():
        yield Case(name, family)
    for mapping, kind in HEADS:
        for architecture, names in getattr(modeling_auto, mapping).items():
            # One class may stand for several heads: it is taken once.
            for name in names if isinstance(names, tuple | list) else [names]:
                yield Case(name, _maker(architecture, name, kind))


def chosen(most_per_architecture: int = 1) -> list[Case]:
    """Return the families and the first class of each architecture."""
    seen: dict[str, int] = {}
    found: dict[str, Case] = {}
    for case in cases():
        key = getattr(case.make, "architecture", case.name)
        if case.name not in found and seen.get(key, 0) < most_per_architecture:
            seen[key] = seen.get(key, 0) + 1
            found[case.name] = case
    return list(found.values())


def _maker(architecture: str, name: str, kind: str) -> Any:
    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        kind_of = getattr(transformers, name)
        config = kind_of.config_class(**_tiny(kind_of.config_class, architecture))
        config.use_cache = False
        module = kind_of(config).eval()
        if module._can_set_experts_implementation():  # the other ways are no aten operations, or depend on the data
            module.set_experts_implementation("batched_mm")
        names, inputs = _inputs(kind, config, module)
        return Answer(module, names), inputs

    make.architecture = architecture  # type: ignore[attr-defined]
    return make


def _tiny(config_class: Any, architecture: str) -> dict[str, Any]:
    """Return arguments for a tiny configuration; nested configurations are shrunk as well."""
    default = config_class()
    values: dict[str, Any] = {}
    for name in [*TINY, *(name for name in vars(default) if name.endswith(TOKEN_NUMBERS))]:
        value = _value(default, name)
        if (value is None and name in FILLED) or (isinstance(value, int) and not isinstance(value, bool)):
            values[name] = TINY.get(name, 3)
    for name, nested in vars(default).items():
        if isinstance(nested, transformers.PreTrainedConfig):
            values[name] = {**_tiny(type(nested), nested.model_type), "model_type": nested.model_type}
    own = {**values, **OWN.get(architecture, {})}
    return {name: value for name, value in own.items() if value is not None and _settable(config_class, name)}


def _value(config: Any, name: str) -> Any:
    """Return a setting; False where there is none."""
    try:
        return getattr(config, name, False)
    except Exception:  # each layer has its own
        return False


def _settable(config_class: Any, name: str) -> bool:
    found = getattr(config_class, name, None)
    return not isinstance(found, property) or found.fset is not None


def _inputs(kind: str, config: Any, module: nn.Module) -> tuple[tuple[str, ...], tuple[Tensor, ...]]:
    if kind == "pixels" and module.main_input_name == "pixel_values":
        size = getattr(config, "image_size", 32)
        sides = tuple(size) if isinstance(size, list | tuple) else (size, size)
        if max(sides) > 64:
            sides = (32, 32)
        return ("pixel_values",), (torch.randn(BATCH, getattr(config, "num_channels", 3), *sides),)
    if kind == "wave":
        name = module.main_input_name
        mel = int(getattr(config, "num_mel_bins", 16))
        shape = (BATCH, WAVE) if name == "input_values" else (BATCH, 16, mel)
        if name == "input_values" and hasattr(config, "frequency_stride"):
            shape = (BATCH, int(config.max_length), mel)
        return (name,), (torch.randn(shape),)
    words = torch.randint(5, VOCABULARY, (BATCH, TOKENS))
    words[:, -1] = 2
    if kind == "pairs":
        return ("input_ids", "decoder_input_ids"), (words, torch.randint(5, VOCABULARY, (BATCH, TOKENS)))
    mask = torch.ones(BATCH, TOKENS, dtype=torch.int64)
    if "attention_mask" not in inspect.signature(module.forward).parameters:
        return ("input_ids",), (words,)
    return ("input_ids", "attention_mask"), (words, mask)
