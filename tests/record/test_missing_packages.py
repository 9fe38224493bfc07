"""fill_missing_ after the loads of real packages: transformers, peft, accelerate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fastinit import Plan, audit, deferred, fill_missing_, materialize_, recipes, recorded_plan

transformers = pytest.importorskip("transformers")

SMALL = {"vocab_size": 40, "num_labels": 3, "pad_token_id": 0}
LLAMA = {**SMALL, "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1}
HEADS = {"num_attention_heads": 2}
CONFIGS: dict[str, Any] = {
    "gpt2": lambda: transformers.GPT2Config(**SMALL, n_positions=16, n_embd=8, n_layer=1, n_head=2),
    "llama": lambda: transformers.LlamaConfig(**LLAMA, **HEADS),
    "llama, tied": lambda: transformers.LlamaConfig(**LLAMA, **HEADS, tie_word_embeddings=True),
    "bert": lambda: transformers.BertConfig(**LLAMA, **HEADS),
}


@pytest.fixture(autouse=True)
def quiet() -> Any:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    yield
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity(before)


def language_model(name: str, seed: int = 0) -> nn.Module:
    auto = (
        transformers.AutoModelForMaskedLM if name == "bert" else transformers.AutoModelForCausalLM
    )
    with deferred(seed):
        return auto.from_config(CONFIGS[name]())


def saved(name: str, path: Path) -> nn.Module:
    """A checkpoint, as trained: with numbers of another seed."""
    model = materialize_(language_model(name, seed=99)).eval()
    model.save_pretrained(path)
    return model


@pytest.mark.parametrize("way", ["empty", "assign"])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_checkpoint_file_makes_the_model_that_was_saved(
    name: str, way: str, tmp_path: Path
) -> None:
    """Tied names that the file lacks are tied, and rotary frequencies and position ids are there."""
    load_file = pytest.importorskip("safetensors.torch").load_file

    trained, model = saved(name, tmp_path), language_model(name)
    if way == "empty":
        model.to_empty(device="cpu")
        for buffer in model.buffers():
            buffer.fill_(7)
    file = load_file(tmp_path / "model.safetensors")
    result = model.load_state_dict(file, strict=False, assign=way == "assign")
    done = fill_missing_(model, result.missing_keys)
    ids = torch.arange(8)[None]
    assert torch.equal(model.eval()(ids).logits, trained(ids).logits)
    assert done.tied == audit(trained).tied
    kinds = {each.name: each.kind for each in done.tensors}
    assert all(kinds[each] == "non-persistent buffer" for each in done.filled)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_new_head_of_from_pretrained_has_its_own_numbers(name: str, tmp_path: Path) -> None:
    trained = saved(name, tmp_path)
    auto = transformers.AutoModelForSequenceClassification
    with deferred(seed=3):
        twin = auto.from_config(CONFIGS[name]())
    plan = recorded_plan(twin)
    expected = materialize_(twin)
    model, info = auto.from_pretrained(tmp_path, num_labels=3, output_loading_info=True)
    done = fill_missing_(model, info["missing_keys"], plan=plan)
    assert set(done.filled) == info["missing_keys"]
    for key in info["missing_keys"]:
        assert torch.equal(model.get_parameter(key), expected.get_parameter(key))
    kept = dict(trained.named_parameters())
    for key, parameter in model.named_parameters():
        assert key in info["missing_keys"] or torch.equal(parameter, kept[key]), key
    assert not done.names("given", "unwritten", "recorded", "changed")

    with deferred(seed=3):  # the same in one: what was loaded is known, the head is recorded
        again = auto.from_pretrained(tmp_path, num_labels=3)
    fill_missing_(again)
    for key, parameter in again.named_parameters():
        assert torch.equal(parameter, model.get_parameter(key)), key


def test_weights_of_another_size_are_filled_like_missing_ones(tmp_path: Path) -> None:
    auto = transformers.AutoModelForSequenceClassification
    auto.from_config(CONFIGS["llama"]()).save_pretrained(tmp_path)
    model, info = auto.from_pretrained(
        tmp_path, num_labels=5, ignore_mismatched_sizes=True, output_loading_info=True
    )
    plan = Plan.from_model(model, recipes.transformers_default, seed=1)
    done = fill_missing_(model, [key for key, *_ in info["mismatched_keys"]], plan=plan)
    assert done.filled == ["score.weight"]
    assert torch.equal(model.score.weight, plan.apply_(auto.from_config(model.config)).score.weight)


@pytest.mark.parametrize("name", ["llama", "llama, tied"])
def test_new_tokens_are_those_of_the_larger_model(name: str, tmp_path: Path) -> None:
    trained = saved(name, tmp_path)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    model.resize_token_embeddings(44)
    plan = Plan.from_model(model, recipes.transformers_default, seed=1)
    names = [n for n in ("model.embed_tokens.weight", "lm_head.weight") if n in plan]
    done = fill_missing_(model, dict.fromkeys(names, slice(40, None)), plan=plan)
    larger = plan.apply_(transformers.AutoModelForCausalLM.from_config(model.config))
    for module in ("get_input_embeddings", "get_output_embeddings"):
        weight, before, new = (getattr(m, module)().weight for m in (model, trained, larger))
        assert torch.equal(weight[:40], before)
        assert torch.equal(weight[40:], new[40:])
    assert ("lm_head.weight" in done.tied) == (name != "llama")


def adapted(base: nn.Module) -> nn.Module:
    peft = pytest.importorskip("peft")
    return peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"]))


def test_adapters_of_peft_are_filled_and_the_base_is_left(tmp_path: Path) -> None:
    base = materialize_(language_model("llama", seed=99))
    kept = {name: parameter.clone() for name, parameter in base.named_parameters()}
    with deferred(seed=3):
        model = adapted(base)
    done = fill_missing_(model)
    adapters = [name for name, _ in model.named_parameters() if "lora_" in name]
    assert done.filled == adapters
    assert len(adapters) == 4
    assert len(done.names("kept")) == len(kept)
    layer = model.base_model.model.model.layers[0].self_attn.q_proj
    assert layer.lora_A["default"].weight.std() > 0
    assert not layer.lora_B["default"].weight.any()
    assert torch.equal(layer.base_layer.weight, kept["model.layers.0.self_attn.q_proj.weight"])

    def of_base(name: str) -> str:
        return name.removeprefix("base_model.model.").replace(".base_layer", "")

    file = {n: kept[of_base(n)] for n, _ in model.named_parameters() if of_base(n) in kept}
    for assign in (False, True):
        with deferred(seed=3):
            whole = adapted(transformers.AutoModelForCausalLM.from_config(CONFIGS["llama"]()))
        if not assign:
            whole.to_empty(device="cpu")
        result = whole.load_state_dict(file, strict=False, assign=assign)
        fill_missing_(whole, result.missing_keys)
        for name, parameter in whole.named_parameters():
            assert torch.equal(parameter, model.get_parameter(name)), name


def test_what_accelerate_leaves_on_meta_is_filled(tmp_path: Path) -> None:
    accelerate = pytest.importorskip("accelerate")
    trained = saved("llama", tmp_path)
    auto = transformers.AutoModelForSequenceClassification
    with deferred(seed=3):
        twin = auto.from_config(CONFIGS["llama"]())
    plan = recorded_plan(twin)
    with accelerate.init_empty_weights(include_buffers=True):
        model = auto.from_config(CONFIGS["llama"]())
    accelerate.load_checkpoint_in_model(model, tmp_path, device_map={"": "cpu"})
    assert "score.weight" in audit(model, plan).missing
    done = fill_missing_(model, plan=plan)
    assert "score.weight" in done.filled
    assert "model.rotary_emb.inv_freq" in done.filled
    assert torch.equal(model.score.weight, materialize_(twin).score.weight)
    assert torch.equal(model.model.embed_tokens.weight, trained.model.embed_tokens.weight)
    assert model(torch.arange(8)[None]).logits.isfinite().all()
