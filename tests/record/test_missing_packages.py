"""fill_missing_ after transformers' loads. (Sharded, accelerate's and peft's: tests/frameworks/.)"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loaded_models import CONFIGS, language_model, quiet, saved, transformers

from fastinit import Plan, audit, deferred, fill_missing_, materialize_, recipes, recorded_plan

__all__ = ["quiet"]  # a fixture of each test here


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
