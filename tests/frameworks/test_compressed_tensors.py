"""Weights in 8 bits and fewer are loaded by compressed-tensors, and by transformers with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fastinit import Blocks, checkpoint, deferred, init, materialize_
from fastinit.checkpoint.quantised import FLOAT8, SCHEMES

pytestmark = pytest.mark.frameworks
pytest.importorskip("compressed_tensors", reason="make frameworks")

SEED, STD = 3, 0.02
PRESETS = {FLOAT8: "FP8_DYNAMIC", "mxfp8": "MXFP8A16", "mxfp4": "MXFP4A16", "nvfp4": "NVFP4A16"}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
}


def llama(**more: Any) -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    with deferred(SEED):
        return LlamaForCausalLM(LlamaConfig(**SIZES, initializer_range=STD, **more))


def values(name: str, shape: tuple[int, ...], format: str) -> torch.Tensor:
    """What a weight is, in float32, once it was rounded to a format."""
    key: dict[str, Any] = {"std": STD, "seed": SEED, "name": name}
    if format != FLOAT8:
        return init.normal_(Blocks.empty(shape, format), **key).values()
    eight = torch.empty(shape, dtype=torch.float8_e4m3fn)
    scale = 2.0**-11  # the least above 6.7637 * 0.02 / 448
    return init.normal_(eight, scale=scale, **key).float() * scale


def check(model: Any, formats: dict[str, str]) -> None:
    """That a loaded model has the values of formats; bfloat16 is what compressed-tensors computes in."""
    plain = materialize_(llama(), dtype=torch.bfloat16).state_dict()
    for name, have in model.state_dict().items():
        if (module := name.removesuffix(".weight")) in formats:
            want = values(name, tuple(have.shape), formats[module])
            # Scales and products are rounded to bfloat16, and nvfp4's scale is divided before.
            torch.testing.assert_close(have.float(), want, rtol=3 * 2.0**-8, atol=0.0, msg=name)
        elif name in plain:
            assert have.equal(plain[name]), name


@pytest.mark.parametrize("format", SCHEMES)
def test_a_scheme_is_a_preset(format: str) -> None:
    from compressed_tensors.quantization import QuantizationConfig
    from compressed_tensors.quantization.quant_scheme import preset_name_to_scheme

    layout = checkpoint.layout(llama(), dtype=format)
    its = QuantizationConfig.model_validate(layout.quantization).config_groups["group_0"]
    preset = preset_name_to_scheme(PRESETS[format], ["Linear"])
    for args in (its.weights, preset.weights):  # what weights without zeros' codes do not have
        args.zp_dtype = None
    assert its.weights == preset.weights
    assert its.input_activations == preset.input_activations
    assert its.format == SCHEMES[format].format


@pytest.mark.parametrize("dequantize", [False, True])
@pytest.mark.parametrize("format", SCHEMES)
def test_from_pretrained(tmp_path: Path, format: str, dequantize: bool) -> None:
    from transformers import CompressedTensorsConfig, LlamaForCausalLM

    checkpoint.write(llama(), tmp_path, dtype=format, shard_size="40KB")
    given = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model, said = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True, **given)
    assert not any(said.values()), said
    assert model(torch.arange(8)[None]).logits.isfinite().all()  # which unpacks
    linear = {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)} - {"lm_head"}
    check(model, dict.fromkeys(linear, format))


@pytest.mark.parametrize("tied", [False, True])
def test_formats_by_pattern(tmp_path: Path, tied: bool) -> None:
    from transformers import LlamaForCausalLM

    asked = {"*.mlp.*": "mxfp4", "*.o_proj.*": "nvfp4", "model.layers.0.*": torch.float8_e4m3fn}
    checkpoint.write(llama(tie_word_embeddings=tied), tmp_path, dtype=asked)
    ignored = json.loads((tmp_path / "config.json").read_text())["quantization_config"]["ignore"]
    assert "lm_head" in ignored
    assert "model.layers.1.self_attn.q_proj" in ignored
    model, said = LlamaForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    model(torch.arange(8)[None])
    formats = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name not in ignored:
            kind = "mxfp4" if ".mlp." in name else "nvfp4" if "o_proj" in name else FLOAT8
            formats[name] = kind
    assert len(formats) == 2 * 4 + 3
    if not tied:
        check(model, formats)


def mixtral() -> Any:
    from transformers import MixtralConfig, MixtralForCausalLM

    with deferred(SEED):
        sizes = {**SIZES, "num_hidden_layers": 1, "num_local_experts": 2}
        return MixtralForCausalLM(MixtralConfig(**sizes, initializer_range=STD))


FUSED = "model.layers.0.mlp.experts.gate_up_proj"
OF_VLLM = pytest.warns(
    UserWarning, match=r"experts\.0\.w\d\.weight is an expert's .* which vLLM reads"
)


@pytest.mark.parametrize(
    "dtype",
    [
        FLOAT8,
        "mxfp4",
        {"*self_attn*": FLOAT8, "*.experts.*": "mxfp4"},
        {"*.experts.*": FLOAT8, "*self_attn*": "nvfp4"},
        {"*self_attn*": "mxfp8", "*.experts.*.w3.*": "mxfp4", "*.experts.*": "mxfp4"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dequantize", [False, True])
def test_experts_are_loaded(tmp_path: Path, dtype: Any, dequantize: bool) -> None:
    from transformers import CompressedTensorsConfig, MixtralForCausalLM

    checkpoint.write(mixtral(), tmp_path, dtype=dtype)
    given = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model, said = MixtralForCausalLM.from_pretrained(tmp_path, output_loading_info=True, **given)
    assert not any(said.values()), said
    assert model(torch.arange(8)[None]).logits.isfinite().all()
    have = model.get_parameter(FUSED)
    format = dtype if isinstance(dtype, str) else dtype["*.experts.*"]
    want = values(FUSED, tuple(have.shape), format)
    torch.testing.assert_close(have.float(), want, rtol=3 * 2.0**-8, atol=0.0)


def test_formats_of_experts_that_transformers_does_not_read(tmp_path: Path) -> None:
    """If this fails, it does now: ``_OF_VLLM`` and docs/low-precision.md have to follow."""
    from transformers import MixtralForCausalLM

    with OF_VLLM:
        checkpoint.write(mixtral(), tmp_path / "nv", dtype="nvfp4")
    have = MixtralForCausalLM.from_pretrained(tmp_path / "nv").get_parameter(FUSED).float()
    want = values(FUSED, tuple(have.shape), "nvfp4")
    assert have.std() > 1000 * want.std()
    with OF_VLLM:
        checkpoint.write(mixtral(), tmp_path / "mx", dtype="mxfp8")
    with pytest.raises(RuntimeError, match="conversion of the weights"):
        MixtralForCausalLM.from_pretrained(tmp_path / "mx")


def test_experts_that_stay_in_one_parameter(tmp_path: Path) -> None:
    from transformers import GptOssConfig, GptOssForCausalLM, Llama4ForCausalLM, Llama4TextConfig

    sizes = {**SIZES, "num_hidden_layers": 1, "num_local_experts": 2, "head_dim": 16}
    with deferred(SEED):
        model = GptOssForCausalLM(GptOssConfig(**sizes))
        llama4 = Llama4ForCausalLM(Llama4TextConfig(**sizes, intermediate_size_mlp=64))
    written = checkpoint.write(model, tmp_path, dtype="mxfp4")
    assert r"re:model\.layers\.0\.mlp\.experts\..*" in written.layout.quantization["ignore"]
    _, said = GptOssForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    with pytest.raises(
        ValueError, match=r"feed_forward\.experts: transformers reads a linear layer"
    ):
        checkpoint.write(llama4, tmp_path / "llama4", dtype="mxfp4")
    assert not (tmp_path / "llama4").exists()
    checkpoint.write(llama4, tmp_path / "llama4", dtype={"*": torch.bfloat16})


@pytest.mark.parametrize("format", [FLOAT8, "mxfp4"])
def test_a_layer_whose_scale_would_be_elsewhere_stays(tmp_path: Path, format: str) -> None:
    """Phi-MoE's router: a linear layer by its class, of which only ``weight`` is renamed in files."""
    from transformers import PhimoeConfig, PhimoeForCausalLM

    with deferred(SEED):
        made = PhimoeForCausalLM(PhimoeConfig(**{**SIZES, "num_local_experts": 2}))
    checkpoint.write(made, tmp_path, dtype=format)
    model, said = PhimoeForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(said.values()), said
    assert model.get_parameter("model.layers.0.mlp.router.weight").dtype == torch.bfloat16
    assert model(torch.arange(8)[None]).logits.isfinite().all()
    with pytest.raises(
        ValueError, match=r"no linear weight .*block_sparse_moe\.gate\.weight would"
    ):
        checkpoint.layout(made, dtype={"*.gate.*": format})


@pytest.mark.filterwarnings("ignore:.*which vLLM reads")
@pytest.mark.parametrize("format", SCHEMES)
def test_experts_are_unpacked_one_by_one(tmp_path: Path, format: str) -> None:
    """Mixtral's, of which a class holds one parameter and a file has linear layers."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationConfig
    from safetensors.torch import load_file

    written = checkpoint.write(mixtral(), tmp_path, dtype=format)
    config = QuantizationConfig.model_validate(written.layout.quantization)
    assert (
        "model.layers.0.block_sparse_moe.gate" in config.ignore
    )  # the router, a linear layer of vLLM's
    scheme = config.config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(scheme.format)
    there = load_file(tmp_path / "model.safetensors")
    want = values(FUSED, (2, 2 * 128, 64), format)
    for expert in range(2):
        for place, name in enumerate(("w1", "w3")):
            prefix = f"model.layers.0.block_sparse_moe.experts.{expert}.{name}."
            its = {k.removeprefix(prefix): v for k, v in there.items() if k.startswith(prefix)}
            have = compressor.decompress(its, scheme)["weight"].float()
            rows = want[expert, 128 * place : 128 * (place + 1)]
            torch.testing.assert_close(have, rows, rtol=3 * 2.0**-8, atol=0.0)
