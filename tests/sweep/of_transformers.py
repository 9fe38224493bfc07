"""One model for each of transformers' model types, with its configuration made small."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Callable
from typing import Any

from sweep.shrink import Build, NoModel, Size, config_of, smallest

# What is trained first: a model with its heads initialises more than one without.
_FIRST = (
    "PRETRAINING",
    "CAUSAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "MULTIMODAL_LM",
    "SEQ_TO_SEQ_CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "CTC",
    "MASKED_LM",
    "OBJECT_DETECTION",
    "UNIVERSAL_SEGMENTATION",
    "MASK_GENERATION",
)


def cases() -> dict[str, Callable[[], Build]]:
    """By model type."""
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    heads = [name for name in dir(modeling_auto) if name.startswith("MODEL_FOR_")]
    heads = [name for name in heads if name.endswith("_MAPPING_NAMES")]
    first = [f"MODEL_FOR_{task}_MAPPING_NAMES" for task in _FIRST]
    order = [*first, *(name for name in heads if name not in first), "MODEL_MAPPING_NAMES"]
    tables = [getattr(modeling_auto, name) for name in order]
    found: dict[str, Callable[[], Build]] = {}
    # Towers and decoders are parts of models: these first.
    for kind in sorted(CONFIG_MAPPING_NAMES, key=_is_a_part):
        names = next((table[kind] for table in tables if kind in table), None)
        names = (names,) if isinstance(names, str) else names
        found[kind] = lambda kind=kind, names=names: _build(kind, names)
    return found


def _is_a_part(kind: str) -> bool:
    from transformers.models.auto.configuration_auto import model_type_to_module_name

    return model_type_to_module_name(kind) != kind.replace("-", "_")


def _build(kind: str, names: tuple[str, ...] | None) -> Build:
    import transformers
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    usual = CONFIG_MAPPING[kind]
    model = getattr(transformers, names[0]) if names else _only_model(usual)
    config = _COMPOSED[kind](transformers) if kind in _COMPOSED else usual()
    for name, value in _NEEDED.get(kind, {}).items():
        setattr(config, name, value)

    def made(size: Size) -> Build:
        small = config_of(config, size)
        return lambda: model(copy.deepcopy(small))

    return smallest(made)


def _only_model(kind: Any) -> Any:
    """The largest model of a configuration that no table of tasks names."""
    from transformers import PreTrainedModel

    module = importlib.import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    of_it = [
        value
        for name in getattr(module, "__all__", ())
        if isinstance(value := getattr(module, name), type)
        and issubclass(value, PreTrainedModel)
        and value.config_class is kind
        and not name.endswith("PreTrainedModel")
    ]
    if not of_it:
        raise NoModel(kind.__name__)
    return max(of_it, key=lambda model: len(model.__mro__))


def _seen_by_resnet(kind: str, *stages: str) -> Callable[[Any], Any]:
    """A detector's configuration with a backbone that can be made small."""

    def made(t: Any) -> Any:
        backbone = t.ResNetConfig(out_features=list(stages or ("stage4",)))
        return t.CONFIG_MAPPING[kind](use_timm_backbone=False, backbone_config=backbone)

    return made


_COMPOSED: dict[str, Callable[[Any], Any]] = {
    "detr": _seen_by_resnet("detr"),
    "conditional_detr": _seen_by_resnet("conditional_detr"),
    "dab-detr": _seen_by_resnet("dab-detr"),
    "table-transformer": _seen_by_resnet("table-transformer"),
    "deformable_detr": _seen_by_resnet("deformable_detr", "stage2", "stage3", "stage4"),
    "encoder-decoder": lambda t: t.EncoderDecoderConfig.from_encoder_decoder_configs(
        t.BertConfig(), t.BertConfig()
    ),
    "vision-encoder-decoder": lambda t: t.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        t.ViTConfig(), t.BertConfig()
    ),
    "speech-encoder-decoder": lambda t: t.SpeechEncoderDecoderConfig.from_encoder_decoder_configs(
        t.Wav2Vec2Config(), t.BertConfig()
    ),
    "vision-text-dual-encoder": lambda t: t.VisionTextDualEncoderConfig.from_vision_text_configs(
        t.ViTConfig(), t.BertConfig()
    ),
    "rag": lambda t: t.RagConfig.from_question_encoder_generator_configs(
        t.DPRConfig(), t.BartConfig()
    ),
}
# What a model has to be told, and no default says.
_NEEDED: dict[str, dict[str, Any]] = {
    "autoformer": {"prediction_length": 8},
    "dots1": {"n_routed_experts": 8},
    "informer": {"prediction_length": 8},
    "time_series_transformer": {"prediction_length": 8},
}
