"""Configurations of transformers: which class they name, and whether the weights at hand are really its own.

The class is transformers' own, found in its tables by name; nothing that a configuration points to is ever loaded, and
it is built on the device ``meta`` first, where nothing is allocated, to compare every shape with the file.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from pruning_core.errors import ModelError, UnsupportedModel

Shapes = Mapping[str, tuple[int, ...]]

#: Tables of transformers' classes -> what they take.
_HEADS = {
    "MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES": "pixels",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "tokens",
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": "tokens",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "tokens",
    "MODEL_MAPPING_NAMES": "",
}
#: Settings that make no difference to what is computed, or reach outside.
_LEFT_OUT = frozenset(
    ("dtype", "torch_dtype", "transformers_version", "pruned_heads", "output_attentions", "output_hidden_states")
) | {"return_dict", "torchscript", "name_or_path", "architectures"}
#: Settings that would load something else: code, another model, a quantiser.
_FORBIDDEN: tuple[str, ...] = (
    "auto_map",
    "custom_pipelines",
    "quantization_config",
    "backbone",
    "use_timm_backbone",
    "timm_config",
)
_FORBIDDEN += ("use_pretrained_backbone", "backbone_config", "encoder", "decoder")
#: Words in the names of settings that count parts, each of which has a tensor of its own.
_COUNTS = ("layer", "depth", "block", "expert", "stage")
_FEW = 512
#: Settings that transformers makes a list of, whatever the weights are.
_LISTED = ("num_labels",)
_MAX_LISTED = 2**17
_MAX_NUMBER = 2**31
#: Most elements of buffers that are in no file.
_MAX_BUFFERS = 2**26
#: Of several ways to compute the same, those that torch.export takes as aten operations.
_WAYS = {"attn_implementation": "eager", "experts_implementation": "batched_mm"}
_ADVICE = "Export the model yourself: torch.export.save(torch.export.export(model.eval(), ...), 'model.pt2')."


def is_config(config: Mapping[str, Any]) -> bool:
    """Return whether a configuration is one of transformers."""
    return "model_type" in config


def class_of(config: Mapping[str, Any]) -> tuple[Any, Any, str]:
    """Return the model class, the configuration class, and what it takes: ``"pixels"`` or ``"tokens"``.

    Raises:
        UnsupportedModel: The class is none of transformers' own, or transformers is not installed.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    try:
        import transformers
        from transformers.models.auto import modeling_auto
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    except ImportError:
        raise UnsupportedModel(
            "Models of transformers cannot be read here: transformers is not installed.",
            advice="The operator can install it: pip install 'pruning-service[hf]'. " + _ADVICE,
        ) from None
    kind, named = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or not isinstance(named, list) or len(named) != 1 or not isinstance(named[0], str):
        raise ModelError(
            "The config does not name one architecture.",
            expected='"model_type": "bert", "architectures": ["BertForMaskedLM"]',
            received={"model_type": str(kind)[:80], "architectures": str(named)[:80]},
        )
    for table, takes in _HEADS.items():
        found = getattr(modeling_auto, table).get(kind)
        if named[0] in ((found,) if isinstance(found, str) else tuple(found or ())) and kind in CONFIG_MAPPING:
            model = getattr(transformers, named[0])
            own = "pixels" if model.main_input_name == "pixel_values" else "tokens"
            if model.main_input_name in ("pixel_values", "input_ids") and takes in ("", own):
                return model, CONFIG_MAPPING[kind], own
    raise UnsupportedModel(
        f"The architecture {named[0][:80]!r} of type {kind[:80]!r} is not read.",
        expected="a transformers model for image, sequence or token classification, masked words, or a base model",
        received={"model_type": kind[:80], "architectures": named[0][:80]},
        advice=_ADVICE,
    )


def settings(config: Mapping[str, Any], tensors: int) -> dict[str, Any]:
    """Return what of a configuration the model is built from.

    Args:
        config: As it came.
        tensors: How many the file has: no number of layers is larger.

    Raises:
        UnsupportedModel: It points to code, to another model or to a quantiser.
        ModelError: It counts more parts than there are tensors, or has absurd numbers.
    """
    for key, value in (*((key, config.get(key)) for key in _FORBIDDEN), *_pointers(config)):
        if value:
            raise UnsupportedModel(
                f"The config points outside itself ({key}): code and other models are never loaded.",
                received={key: str(value)[:200]},
                advice=f"Remove {key!r} if the model is one of transformers' own. " + _ADVICE,
            )
    kept = {key: _kept(value) for key, value in config.items() if key not in _LEFT_OUT and not _chooses_code(key)}
    for key, number in _numbers("", kept):
        most = max(tensors, _FEW) if any(word in key for word in _COUNTS) and "block_size" not in key else _MAX_NUMBER
        most = _MAX_LISTED if key in _LISTED else most
        if abs(number) > most:
            raise ModelError(
                f"The config's {key} is larger than the weights allow.", expected=f"at most {most}", received=number
            )
    return kept


def _pointers(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield what points to code or a quantiser in the configuration of a part."""
    for key, item in value.items() if isinstance(value, Mapping) else enumerate(value):
        if isinstance(item, Mapping | list):
            yield from _pointers(item)
        if key in ("auto_map", "quantization_config"):
            yield key, item


def _kept(value: Any) -> Any:
    """Return a setting without what chooses code in the configuration of a part."""
    if not isinstance(value, Mapping):
        return value
    return {key: _kept(item) for key, item in value.items() if not _chooses_code(key)}


def _chooses_code(key: str) -> bool:
    """Return whether a setting names kernels, which could be on a hub."""
    return key.startswith("_") or key.endswith("_implementation")


def _numbers(key: str, value: Any) -> Iterator[tuple[str, float]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            if name not in ("id2label", "label2id"):
                yield from _numbers(str(name), item)
    elif isinstance(value, list):
        for item in value:
            yield from _numbers(key, item)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def build(config: Mapping[str, Any], shapes: Shapes) -> tuple[nn.Module, Any, str, dict[str, str]]:
    """Return the module in eval mode with weights of no meaning, its configuration, and what it takes; and file names.

    The last is the module's name -> the file's, which differ where transformers renamed the parts of a model.

    Args:
        config: As it came.
        shapes: Of the file's tensors.

    Raises:
        ModelError: The weights are not those of the architecture.
        UnsupportedModel: The architecture is not read.
    """
    model, config_class, takes = class_of(config)
    kept = settings(config, len(shapes))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        own = _attempt(lambda: config_class.from_dict(dict(kept)))
        with torch.device("meta"):
            empty = _attempt(lambda: model._from_config(own, **_WAYS))
        names = _names(empty, shapes)
        _compare(empty, {name: shapes[given] for name, given in names.items()}, [*shapes])
        from transformers.initialization import no_init_weights

        with no_init_weights():
            module = _attempt(lambda: model._from_config(own, **_WAYS))
            module.tie_weights()
    return module.eval(), own, takes, names


def _names(module: Any, given: Iterable[str]) -> dict[str, str]:
    """Return the module's name -> the file's; tensors that the module has no place for are left out."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightRenaming, rename_source_key

    own = module.state_dict()
    rules = [rule for rule in get_model_conversion_mapping(module) if isinstance(rule, WeightRenaming)]
    found: dict[str, str] = {}
    for name in given:
        renamed, _ = _attempt(partial(rename_source_key, name, rules, [], module.base_model_prefix, own))
        target = renamed if renamed in own else name
        if target in own and target in found:
            raise ModelError(f"The file has {found[target]!r} and {name!r}, which are one weight.", received=name)
        if target in own:
            found[target] = name
    return found


def _compare(module: Any, shapes: Shapes, given: list[str]) -> None:
    own = module.state_dict(keep_vars=True)
    for name, shape in shapes.items():
        if name in own and tuple(own[name].shape) != shape:
            raise ModelError(
                f"The weight {name!r} is of another shape than the config says.",
                expected=list(own[name].shape),
                received=list(shape),
            )
    held = {id(own[name]) for name in shapes if name in own}  # a tied weight has several names, and the file one
    missing = [name for name, tensor in own.items() if id(tensor) not in held and tensor.is_floating_point()]
    if missing:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightRenaming

        merged = any(not isinstance(rule, WeightRenaming) for rule in get_model_conversion_mapping(module))
        raise ModelError(
            f"The file has no weight {missing[0]!r}.",
            expected=missing[:20],
            received=given[:20],
            advice=(
                "When transformers loads this architecture it makes one weight of several (experts), which is not done "
                "here. "
                if merged
                else "Save it with model.save_pretrained of a recent transformers. "
            )
            + _ADVICE,
        )
    kept = {id(tensor) for tensor in own.values()}
    if sum(b.numel() for b in module.buffers() if id(b) not in kept) > _MAX_BUFFERS:
        raise ModelError("The config asks for huge tables.", expected=f"at most {_MAX_BUFFERS} elements")


def _attempt(make: Callable[[], Any]) -> Any:
    try:
        return make()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a class fed with numbers from outside may raise anything
        text = str(error).strip().splitlines()
        raise ModelError(
            f"transformers cannot build the model of this config: {text[0][:300] if text else type(error).__name__}",
            advice="Send the config.json that save_pretrained wrote beside the weights.",
        ) from None
