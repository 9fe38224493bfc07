"""Models of diffusion, of sound and of medicine, and adapters."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import nn

from sweep.shrink import Build, by_signature

Cases = dict[str, Callable[[], Build]]


def diffusers() -> Cases:
    """Each of its models, by its signature."""
    import diffusers as package

    found: Cases = {}
    for name in sorted(dir(package)):
        try:
            kind = getattr(package, name)
        except (ImportError, RuntimeError):  # of a package that is not there
            continue
        is_model = isinstance(kind, type) and issubclass(kind, package.ModelMixin)
        if is_model and kind is not package.ModelMixin:
            found[name] = partial(by_signature, kind, **_DIFFUSERS.get(name, {}))
    return found


_DIFFUSERS: dict[str, dict[str, Any]] = {}


def peft() -> Cases:
    """Each way of adapting, on a tiny Llama; those of LoRA in each of its initialisations."""
    from peft import PEFT_TYPE_TO_CONFIG_MAPPING, LoraConfig, PeftType, TaskType, get_peft_model

    def build(kind: Any, **given: Any) -> Build:
        import transformers as t

        config = t.LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=4,
            vocab_size=128,
            max_position_embeddings=64,
        )
        takes = inspect.signature(kind).parameters
        usual: dict[str, Any] = {"task_type": TaskType.CAUSAL_LM}
        if "target_modules" in takes:
            usual["target_modules"] = ["q_proj", "v_proj"]
        usual |= {key: 4 for key in ("r", "rank") if key in takes}
        usual |= {key: 5 for key in ("num_virtual_tokens",) if key in takes}
        given = {**usual, **given}
        return lambda: get_peft_model(t.LlamaForCausalLM(config), kind(**given))

    found: Cases = {
        f"LoRA, {how}": partial(build, LoraConfig, **given) for how, given in _LORA.items()
    }
    for kind, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        if kind is not PeftType.LORA:
            found[kind.value] = partial(build, config, **_PEFT.get(kind.value, {}))
    return found


_LORA: dict[str, dict[str, Any]] = {
    "as it is": {},
    "gaussian": {"init_lora_weights": "gaussian"},
    "PiSSA": {"init_lora_weights": "pissa"},
    "PiSSA by iteration": {"init_lora_weights": "pissa_niter_4"},
    "OLoRA": {"init_lora_weights": "olora"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "not reset": {"init_lora_weights": False},
    "DoRA": {"use_dora": True},
    "rsLoRA": {"use_rslora": True},
    "with a bias": {"lora_bias": True},
    "embeddings too": {"target_modules": ["q_proj", "embed_tokens"]},
    "modules to save": {"modules_to_save": ["lm_head"]},
    "trainable tokens": {"trainable_token_indices": [0, 1, 2]},
    "replicated layers": {"layer_replication": [(0, 2), (1, 2)]},
    "parameters": {"target_modules": [], "target_parameters": ["q_proj.weight"]},
}
_PEFT: dict[str, dict[str, Any]] = {
    "IA3": {"target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]},
    "ADALORA": {"total_step": 10, "init_r": 6, "target_r": 4},
    "BOFT": {"boft_block_size": 4},
    "OFT": {"oft_block_size": 8, "r": 0},
    "C3A": {"block_size": 8},
    "FOURIERFT": {"n_frequency": 10},
    "TRAINABLE_TOKENS": {"token_indices": [0, 1, 2], "target_modules": ["embed_tokens"]},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "ADAPTION_PROMPT": {"adapter_len": 4, "adapter_layers": 2, "target_modules": "self_attn"},
    "VBLORA": {"num_vectors": 8, "vector_length": 8, "topk": 2},
    "MULTITASK_PROMPT_TUNING": {"num_tasks": 2},
    "PREFIX_TUNING": {"encoder_hidden_size": 16, "prefix_projection": True},
    "ROAD": {"group_size": 8},
    "WAVEFT": {"n_frequency": 10},
    "P_TUNING": {"encoder_hidden_size": 16},
}


def monai() -> Cases:
    """Its networks."""
    from monai.networks import nets

    given: dict[str, dict[str, Any]] = {
        name: {"channels": (4, 8, 16), "strides": (2, 2)}
        for name in ("AttentionUnet", "AutoEncoder", "UNet")
    }
    strided = {"channels": (4, 8), "strides": (2, 2)}
    given |= {
        "Classifier": {"in_shape": (1, 16, 16), "classes": 3, **strided},
        "Critic": {"in_shape": (1, 16, 16), **strided},
        "Discriminator": {"in_shape": (1, 16, 16), **strided},
        "Regressor": {"in_shape": (1, 16, 16), "out_shape": (2,), **strided},
        "Generator": {"latent_shape": (4,), "start_shape": (4, 4, 4), **strided},
        "VarAutoEncoder": {"in_shape": (1, 16, 16), "latent_size": 4, **strided},
        "FullyConnectedNet": {"hidden_channels": (8, 8)},
        "VarFullyConnectedNet": {
            "latent_size": 4,
            "encode_channels": (8,),
            "decode_channels": (8,),
        },
        "DynUNet": {"kernel_size": (3, 3, 3), "strides": (1, 2, 2), "upsample_kernel_size": (2, 2)},
        "EfficientNetBN": {"model_name": "efficientnet-b0", "pretrained": False, "spatial_dims": 2},
        "FlexibleUNet": {"backbone": "efficientnet-b0", "pretrained": False},
        "FlexUNet": {"backbone": "efficientnet-b0", "pretrained": False},
        "DenseNet121": {"init_features": 8, "growth_rate": 4, "block_config": (2, 2)},
        "DenseNet": {"init_features": 8, "growth_rate": 4, "block_config": (2, 2)},
        "UNETR": {"img_size": 32, "feature_size": 4, "hidden_size": 48, "mlp_dim": 64},
        "SwinUNETR": {"feature_size": 12, "in_channels": 1},
        "ViT": {"hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "patch_size": (8, 8)},
        "ViTAutoEnc": {"hidden_size": 24, "mlp_dim": 32, "num_heads": 2, "patch_size": (8, 8)},
        "MaskedAutoEncoderViT": {
            "hidden_size": 24,
            "mlp_dim": 32,
            "num_heads": 2,
            "patch_size": (8, 8),
        },
        "DecoderOnlyTransformer": {
            "attn_layers_dim": 16,
            "attn_layers_depth": 2,
            "attn_layers_heads": 2,
        },
        "AutoencoderKL": {
            "channels": (32, 32),
            "attention_levels": (False, True),
            "num_res_blocks": 1,
        },
        "VQVAE": {"channels": (8, 8), "num_res_channels": (8, 8)},
        "GlobalNet": {"image_size": (16, 16), "num_channel_initial": 4, "depth": 2},
        "LocalNet": {"num_channel_initial": 4, "extract_levels": (0, 1)},
        "RegUNet": {"num_channel_initial": 4, "depth": 2},
        "VoxelMorphUNet": {
            "in_channels": 2,
            "unet_out_channels": 8,
            "channels": (4, 8, 8, 4),
            "final_conv_channels": (4,),
        },
        "MultiScalePatchDiscriminator": {"num_d": 2, "num_layers_d": 2, "channels": 4},
        "PatchDiscriminator": {"channels": 4, "num_layers_d": 2},
        "SegResNetVAE": {"input_image_size": (32, 32, 32)},
        "SPADENet": {"label_nc": 3, "input_shape": [16, 16], "channels": [8, 8]},
        "SPADEAutoencoderKL": {
            "label_nc": 3,
            "channels": (32, 32),
            "attention_levels": (False, False),
            "num_res_blocks": (1, 1),
        },
        "TopologySearch": {"channel_mul": 0.25, "num_blocks": 4, "num_depths": 2},
    }
    diffusion = {"channels": (32, 32), "attention_levels": (False, True), "num_head_channels": 8}
    given["DiffusionModelUNet"] = {**diffusion, "num_res_blocks": 1}
    given["ControlNet"] = {**diffusion, "num_res_blocks": 1}
    given["SPADEDiffusionModelUNet"] = {**diffusion, "num_res_blocks": 1, "label_nc": 3}
    given["AutoEncoder"] = strided
    given["MILModel"] = {"pretrained": False}
    resnet = {"block": "basic", "layers": (1, 1, 1, 1), "block_inplanes": (4, 8, 8, 8)}
    given["ResNet"] = {**resnet, "spatial_dims": 2}
    found: Cases = {}
    kinds = set()
    for name, kind in vars(nets).items():
        whole = isinstance(kind, type) and issubclass(kind, nn.Module) and kind not in kinds
        if whole and name not in _PARTS:
            kinds.add(kind)
            found[name] = partial(by_signature, kind, **given.get(name, {}))
    return found


_PARTS = (
    "BertAttention",
    "BertMixedLayer",
    "BertOutput",
    "BertPreTrainedModel",
    "Pooler",
    "NetAdapter",
)


def torchaudio() -> Cases:
    """Its models."""
    from torchaudio import models

    wav2vec2 = {
        "extractor_mode": "group_norm",
        "extractor_conv_layer_config": [(8, 10, 5), (8, 3, 2)],
        "extractor_conv_bias": False,
        "encoder_embed_dim": 16,
        "encoder_projection_dropout": 0.1,
        "encoder_pos_conv_kernel": 4,
        "encoder_pos_conv_groups": 2,
        "encoder_num_layers": 2,
        "encoder_num_heads": 2,
        "encoder_attention_dropout": 0.1,
        "encoder_ff_interm_features": 32,
        "encoder_ff_interm_dropout": 0.1,
        "encoder_dropout": 0.1,
        "encoder_layer_norm_first": False,
        "encoder_layer_drop": 0.1,
        "aux_num_out": 5,
    }
    wavlm = {key: value for key, value in wav2vec2.items() if "pos_conv" not in key}
    wavlm |= {"encoder_num_buckets": 8, "encoder_max_distance": 16}
    wavlm |= {"encoder_pos_conv_kernel": 4, "encoder_pos_conv_groups": 2}
    masks = {
        "mask_prob": 0.8,
        "mask_selection": "static",
        "mask_other": 0.0,
        "mask_length": 10,
        "no_mask_overlap": False,
        "mask_min_space": 1,
        "mask_channel_prob": 0.0,
        "mask_channel_selection": "static",
        "mask_channel_other": 0.0,
        "mask_channel_length": 10,
        "no_mask_channel_overlap": False,
        "mask_channel_min_space": 1,
        "skip_masked": False,
        "skip_nomask": False,
        "num_classes": 5,
        "final_dim": 8,
        "feature_grad_mult": 0.1,
    }
    hubert = {k: v for k, v in wav2vec2.items() if k != "aux_num_out"} | masks
    rnnt: dict[str, Any] = {
        "input_dim": 8,
        "encoding_dim": 16,
        "num_symbols": 32,
        "segment_length": 4,
        "right_context_length": 4,
        "time_reduction_input_dim": 8,
        "time_reduction_stride": 2,
        "transformer_num_heads": 2,
        "transformer_ffn_dim": 32,
        "transformer_num_layers": 2,
        "transformer_dropout": 0.1,
        "transformer_activation": "gelu",
        "transformer_left_context_length": 4,
        "transformer_max_memory_size": 0,
        "transformer_weight_init_scale_strategy": "depthwise",
        "transformer_tanh_on_mem": True,
        "symbol_embedding_dim": 8,
        "num_lstm_layers": 2,
        "lstm_layer_norm": True,
        "lstm_layer_norm_epsilon": 1e-3,
        "lstm_dropout": 0.1,
    }
    made: Cases = {
        "Wav2Letter": lambda: lambda: models.Wav2Letter(),
        "WaveRNN": lambda: (
            lambda: models.WaveRNN(
                [5, 5, 8], 16, 200, n_res_block=2, n_rnn=16, n_fc=16, n_hidden=8, n_output=8
            )
        ),
        "ConvTasNet": lambda: (
            lambda: models.ConvTasNet(2, 16, 16, 3, 8, 16, msk_num_layers=2, msk_num_stacks=2)
        ),
        "DeepSpeech": lambda: lambda: models.DeepSpeech(8, 16, 5),
        "wav2vec2_model": lambda: lambda: models.wav2vec2_model(**wav2vec2),
        "wav2vec2_model, layer norm": lambda: (
            lambda: models.wav2vec2_model(
                **{**wav2vec2, "extractor_mode": "layer_norm", "encoder_layer_norm_first": True}
            )
        ),
        "wavlm_model": lambda: lambda: models.wavlm_model(**wavlm),
        "hubert_pretrain_model": lambda: lambda: models.hubert_pretrain_model(**hubert),
        "Tacotron2": lambda: (
            lambda: models.Tacotron2(
                n_mels=8,
                symbol_embedding_dim=16,
                encoder_embedding_dim=16,
                decoder_rnn_dim=16,
                attention_rnn_dim=16,
                attention_hidden_dim=8,
                prenet_dim=8,
                postnet_embedding_dim=16,
            )
        ),
        "Conformer": lambda: lambda: models.Conformer(8, 2, 16, 2, 3),
        "Emformer": lambda: lambda: models.Emformer(8, 2, 16, 2, 4),
        "emformer_rnnt_model": lambda: lambda: models.emformer_rnnt_model(**rnnt),
        "HDemucs": lambda: lambda: models.HDemucs(["a", "b"], channels=8, nfft=512, depth=4),
        "squim_objective_base": lambda: lambda: models.squim_objective_base(),
        "squim_subjective_model": lambda: (
            lambda: models.squim_subjective_model("wav2vec2_base", 8, 8, 8)
        ),
    }
    return made
