"""Models that see: of timm, torchvision, open_clip, segmentation_models_pytorch, vit_pytorch, kornia."""

from __future__ import annotations

import copy
import importlib
import inspect
import pkgutil
from collections import defaultdict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from torch import nn

from sweep.shrink import Build, by_call, by_signature

Cases = dict[str, Callable[[], Build]]

_SMALL = (
    *("test", "atto", "femto", "pico", "zepto", "nano", "xxs", "xx_small", "xxtiny", "tiny", "xs"),
    *("micro", "mini", "x_small", "lite", "small", "s0", "s1", "t0", "m0", "b0", "p0", "n0", "050"),
    *("0_5", "0_75", "400mf", "11", "18", "26", "s", "t", "21", "34", "42", "50", "b1", "base"),
)


def _smallest_name(names: Iterable[str]) -> str:
    """Of names of one family's sizes that which says that it is the smallest."""

    def rank(name: str) -> tuple[int, int, str]:
        parts = name.replace("-", "_").lower()
        found = [
            i
            for i, word in enumerate(_SMALL)
            if f"_{word}_" in f"_{parts}_" or parts.endswith(word)
        ]
        return min(found, default=len(_SMALL)), len(name), name

    return min(names, key=rank)


def timm() -> Cases:
    """One for each of its files."""
    from timm import create_model, list_models, list_modules

    chosen = [_smallest_name(names) for m in list_modules() if (names := list_models(module=m))]
    return {
        name: partial(by_call, partial(create_model, name, pretrained=False, num_classes=10))
        for name in chosen
    }


def torchvision() -> Cases:
    """One for each of its files and kinds of head."""
    from torchvision import models

    files = defaultdict(list)
    for name in models.list_models():
        builder = models.get_model_builder(name)
        files[builder.__module__, name.split("_")[0].rstrip("0123456789")].append(name)

    def build(name: str) -> Build:
        builder = models.get_model_builder(name)
        takes = inspect.signature(builder).parameters
        given: dict[str, Any] = {"weights": None}
        given |= {key: None for key in ("weights_backbone",) if key in takes}
        return by_call(partial(builder, **given))

    chosen = [_smallest_name(names) for names in files.values()]
    return {name: partial(build, name) for name in chosen}


def open_clip() -> Cases:
    """One for each architecture of a tower; those with a tower of transformers' need its files."""
    chosen = (
        *(
            "RN50",
            "ViT-B-32",
            "ViT-S-32",
            "convnext_tiny",
            "coca_ViT-B-32",
            "EVA02-B-16",
            "ViTamin-S",
        ),
        *("MobileCLIP2-S0", "MobileCLIP-S1", "PE-Core-T-16-384", "ViT-B-16-SigLIP", "ViT-M-32-alt"),
        *(
            "ViT-B-32-quickgelu",
            "swin_base_patch4_window7_224",
            "vit_relpos_medium_patch16_cls_224",
        ),
        *("roberta-ViT-B-32", "mt5-base-ViT-B-32", "vit_medium_patch16_gap_256", "nllb-clip-base"),
    )

    def build(name: str) -> Build:
        import open_clip as package

        config = package.get_model_config(name)
        for tower in ("vision_cfg", "text_cfg", "multimodal_cfg"):
            config.setdefault(tower, {}) if tower != "multimodal_cfg" else None
            part = config.get(tower, {})
            if isinstance(part.get("layers"), int):
                part["layers"] = min(part["layers"], 2)
            if "vocab_size" in part:
                part["vocab_size"] = 512
        kind = package.CoCa if "multimodal_cfg" in config else package.CLIP
        if config.pop("custom_text", False) and kind is package.CLIP:
            kind = package.CustomTextCLIP
        return by_call(lambda: kind(**copy.deepcopy(config)))

    return {name: partial(build, name) for name in chosen}


def segmentation_models_pytorch() -> Cases:
    """Each architecture with a small encoder, and one with each of the other kinds of encoder."""
    import segmentation_models_pytorch as smp

    made = {f"{kind}, resnet18": (kind, "resnet18") for kind in smp.MODEL_ARCHITECTURES_MAPPING}
    made |= {f"unet, {encoder}": ("unet", encoder) for encoder in _ENCODERS}
    return {
        name: partial(by_call, partial(smp.create_model, kind, encoder, encoder_weights=None))
        for name, (kind, encoder) in made.items()
    }


_ENCODERS = (
    *("vgg11", "densenet121", "dpn68", "mobilenet_v2", "efficientnet-b0", "mit_b0", "mobileone_s0"),
    *(
        "timm-regnetx_002",
        "timm-skresnet18",
        "xception",
        "inceptionv4",
        "se_resnet50",
        "timm-res2net50_26w_4s",
    ),
)


def vit_pytorch() -> Cases:
    """The models of each of its files, by their signatures."""
    import vit_pytorch as package

    found = {}
    for info in pkgutil.iter_modules(package.__path__):
        try:
            module = importlib.import_module(f"{package.__name__}.{info.name}")
        except ImportError:  # of what an example of its own wants
            continue
        for name, value in vars(module).items():
            own = isinstance(value, type) and value.__module__ == module.__name__
            if own and issubclass(value, nn.Module) and _is_whole(name):
                given = _VIT.get(name, {})
                found[f"{info.name}.{name}"] = partial(by_signature, value, **given)
    return found


def _is_whole(name: str) -> bool:
    """Whether a class is a model: these are called by their abbreviations."""
    return name not in ("GEGLU", "RMSNorm") and sum(letter.isupper() for letter in name) > 2


_VIT: dict[str, dict[str, Any]] = {}


def kornia() -> Cases:
    """Detectors and descriptors, none with the weights that it was trained to."""
    names = (
        *("HardNet", "HardNet8", "HyNet", "SOSNet", "TFeat", "KeyNet", "LoFTR", "DISK", "DeDoDe"),
        *("LightGlue", "SOLD2", "DeFMO", "XFeat", "ALIKED", "LAFAffNetShapeEstimator", "OriNet"),
    )

    def build(name: str) -> Build:
        import kornia.feature as package

        function = getattr(package, name)
        takes = inspect.signature(function).parameters
        given: dict[str, Any] = {key: False for key in ("pretrained",) if key in takes}
        if name in ("LoFTR",):
            given["pretrained"] = None
        return partial(function, **given)

    return {name: partial(build, name) for name in names}
