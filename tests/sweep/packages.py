"""Which packages are gone over, and how each names its models."""

from __future__ import annotations

from collections.abc import Callable

from sweep import of_graphs, of_images, of_layers, of_others, of_transformers
from sweep.shrink import Build

PACKAGES: dict[str, Callable[[], dict[str, Callable[[], Build]]]] = {
    "torch": of_layers.torch_nn,
    "timm": of_images.timm,
    "torchvision": of_images.torchvision,
    "diffusers": of_others.diffusers,
    "peft": of_others.peft,
    "torch_geometric": of_graphs.torch_geometric,
    "monai": of_others.monai,
    "open_clip": of_images.open_clip,
    "x_transformers": of_layers.x_transformers,
    "vector_quantize_pytorch": of_layers.vector_quantize_pytorch,
    "torchaudio": of_others.torchaudio,
    "segmentation_models_pytorch": of_images.segmentation_models_pytorch,
    "e3nn": of_layers.e3nn,
    "kornia": of_images.kornia,
    "vit_pytorch": of_images.vit_pytorch,
    "transformers": of_transformers.cases,
}
