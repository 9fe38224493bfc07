"""Layers: of torch, x_transformers, vector_quantize_pytorch and e3nn."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from sweep.shrink import Build, by_signature

Cases = dict[str, Callable[[], Build]]


def torch_nn() -> Cases:
    """Each module of torch.nn that has parameters, and its parametrizations."""
    found: Cases = {name: partial(by_signature, getattr(nn, name)) for name in _LAYERS}
    found |= {
        name: partial(by_signature, getattr(nn, name), input_size=4, hidden_size=8, num_layers=2)
        for name in ("RNN", "LSTM", "GRU")
    }
    found["LSTM, projected"] = lambda: lambda: nn.LSTM(4, 8, proj_size=3, bidirectional=True)
    found["Bilinear"] = lambda: lambda: nn.Bilinear(4, 5, 6)
    found["LayerNorm"] = partial(by_signature, nn.LayerNorm, normalized_shape=(3, 5))
    found["RMSNorm"] = partial(by_signature, nn.RMSNorm, normalized_shape=(3, 5))
    found["AdaptiveLogSoftmaxWithLoss"] = partial(
        by_signature, nn.AdaptiveLogSoftmaxWithLoss, n_classes=20, cutoffs=[5, 10]
    )
    for name in ("TransformerEncoderLayer", "TransformerDecoderLayer"):
        stack = getattr(nn, name.removesuffix("Layer"))
        layer = getattr(nn, name)
        found[name.removesuffix("Layer")] = lambda stack=stack, layer=layer: (
            lambda: stack(layer(8, 2, 16), 2)
        )
    for name in ("orthogonal", "spectral_norm", "weight_norm"):
        made = getattr(nn.utils.parametrizations, name)
        found[f"parametrizations.{name}"] = lambda made=made: lambda: made(nn.Linear(8, 16))
    found["utils.spectral_norm"] = lambda: lambda: nn.utils.spectral_norm(nn.Conv2d(4, 6, 3))
    found["utils.weight_norm"] = lambda: lambda: nn.utils.weight_norm(nn.Linear(8, 16))
    return found


_LAYERS = (
    *(f"{kind}{n}d" for n in (1, 2, 3) for kind in ("Conv", "ConvTranspose", "BatchNorm")),
    *(f"Lazy{kind}{n}d" for n in (1, 2, 3) for kind in ("Conv", "ConvTranspose", "BatchNorm")),
    *("Linear", "LazyLinear", "Embedding", "EmbeddingBag", "GroupNorm", "SyncBatchNorm", "PReLU"),
    *("MultiheadAttention", "RNNCell", "LSTMCell", "GRUCell", "Transformer"),
    *("TransformerEncoderLayer", "TransformerDecoderLayer", "LinearCrossEntropyLoss"),
)


def x_transformers() -> Cases:
    """Its attention layers with what can be switched on in them."""
    from x_transformers import (
        ContinuousTransformerWrapper,
        CrossAttender,
        Decoder,
        Encoder,
        NeoMLP,
        TransformerWrapper,
        ViTransformerWrapper,
        XTransformer,
    )

    def words(**given: Any) -> Callable[[], Build]:
        def build() -> nn.Module:
            layers = Decoder(dim=16, depth=2, heads=2, attn_dim_head=8, **given)
            return TransformerWrapper(num_tokens=32, max_seq_len=16, attn_layers=layers)

        return lambda: build

    found = {
        switch: words(**{switch: value})
        for switch, value in {
            "use_rmsnorm": True,
            "use_scalenorm": True,
            "rotary_pos_emb": True,
            "alibi_pos_bias": True,
            "rel_pos_bias": True,
            "dynamic_pos_bias": True,
            "ff_glu": True,
            "attn_qk_norm": True,
            "attn_num_mem_kv": 4,
            "attn_pre_talking_heads": True,
            "attn_gate_values": True,
            "macaron": True,
            "sandwich_norm": True,
            "residual_attn": True,
            "gate_residual": True,
            "shift_tokens": 1,
            "ff_no_bias": True,
            "zero_init_branch_output": True,
            "num_residual_streams": 2,
            "add_value_residual": True,
            "attn_sparse_topk": 4,
            "use_layerscale": True,
            "use_simple_rmsnorm": True,
            "use_dynamic_tanh": True,
            "attn_head_scale": True,
            "scale_residual": True,
        }.items()
    }
    found["plain"] = words()
    found["memory tokens"] = lambda: (
        lambda: TransformerWrapper(
            num_tokens=32,
            max_seq_len=16,
            num_memory_tokens=4,
            tie_embedding=True,
            attn_layers=Encoder(dim=16, depth=2, heads=2),
        )
    )
    found["ViTransformerWrapper"] = lambda: (
        lambda: ViTransformerWrapper(
            image_size=16,
            patch_size=4,
            num_classes=3,
            attn_layers=Encoder(dim=16, depth=2, heads=2),
        )
    )
    found["ContinuousTransformerWrapper"] = lambda: (
        lambda: ContinuousTransformerWrapper(
            dim_in=4, dim_out=4, max_seq_len=16, attn_layers=Encoder(dim=16, depth=2, heads=2)
        )
    )
    found["CrossAttender"] = lambda: lambda: CrossAttender(dim=16, depth=2, heads=2)
    found["XTransformer"] = lambda: (
        lambda: XTransformer(
            dim=16,
            enc_num_tokens=32,
            enc_depth=2,
            enc_heads=2,
            enc_max_seq_len=16,
            dec_num_tokens=32,
            dec_depth=2,
            dec_heads=2,
            dec_max_seq_len=16,
            tie_token_emb=True,
        )
    )
    found["NeoMLP"] = lambda: (
        lambda: NeoMLP(dim_in=4, dim_out=3, dim_hidden=5, depth=2, dim_model=16)
    )
    return found


def vector_quantize_pytorch() -> Cases:
    """Its quantizers."""
    import vector_quantize_pytorch as package

    given: dict[str, dict[str, Any]] = {
        "VectorQuantize": {"dim": 8, "codebook_size": 16},
        "VectorQuantize, cosine": {"dim": 8, "codebook_size": 16, "use_cosine_sim": True},
        "VectorQuantize, learnt": {
            "dim": 8,
            "codebook_size": 16,
            "learnable_codebook": True,
            "ema_update": False,
        },
        "ResidualVQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
        "GroupedResidualVQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2, "groups": 2},
        "RandomProjectionQuantizer": {
            "dim": 8,
            "codebook_size": 16,
            "codebook_dim": 4,
            "num_codebooks": 2,
        },
        "FSQ": {"levels": [4, 4], "dim": 8},
        "ResidualFSQ": {"levels": [4, 4], "dim": 8, "num_quantizers": 2},
        "LFQ": {"dim": 8, "codebook_size": 16},
        "ResidualLFQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
        "SimVQ": {"dim": 8, "codebook_size": 16},
        "ResidualSimVQ": {"dim": 8, "codebook_size": 16, "num_quantizers": 2},
        "LatentQuantize": {"levels": [4, 4], "dim": 8},
    }
    return {
        name: lambda name=name, kwargs=kwargs: partial(
            getattr(package, name.split(",")[0]), **kwargs
        )
        for name, kwargs in given.items()
    }


def e3nn() -> Cases:
    """Equivariant layers and networks."""
    from e3nn import nn as layers
    from e3nn import o3
    from e3nn.nn.models.gate_points_2101 import Network as Network2101
    from e3nn.nn.models.gate_points_2102 import Network as Network2102
    from e3nn.nn.models.v2106.gate_points_networks import SimpleNetwork

    irreps = "2x0e + 2x1o"
    usual: dict[str, Any] = {
        "irreps_in": "3x0e",
        "irreps_hidden": irreps,
        "irreps_out": "1x0e",
        "irreps_node_attr": "1x0e",
        "irreps_edge_attr": "0e + 1o",
        "layers": 2,
        "max_radius": 2.0,
        "number_of_basis": 4,
        "radial_layers": 1,
        "radial_neurons": 8,
        "num_neighbors": 3.0,
        "num_nodes": 5.0,
    }
    made: Cases = {
        "o3.Linear": lambda: lambda: o3.Linear(irreps, irreps, biases=True),
        "o3.FullyConnectedTensorProduct": lambda: (
            lambda: o3.FullyConnectedTensorProduct(irreps, "0e + 1o", irreps)
        ),
        "o3.TensorSquare": lambda: lambda: o3.TensorSquare(irreps, irreps),
        "o3.Norm": lambda: lambda: o3.Norm(irreps),
        "FullyConnectedNet": lambda: lambda: layers.FullyConnectedNet([4, 8, 2], torch.tanh),
        "BatchNorm": lambda: lambda: layers.BatchNorm(irreps),
        "Gate": lambda: lambda: layers.Gate("2x0e", [torch.tanh], "2x0e", [torch.sigmoid], "2x1o"),
        "gate_points_2101": lambda: lambda: Network2101(**usual),
        "gate_points_2102": lambda: lambda: Network2102(**usual),
        "SimpleNetwork": lambda: (
            lambda: SimpleNetwork("3x0e", "1x0e", max_radius=2.0, num_neighbors=3.0, num_nodes=5.0)
        ),
    }
    return made
