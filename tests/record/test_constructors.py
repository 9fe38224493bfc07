"""deferred(): constructors of real models, their distributions, plans and places."""

from __future__ import annotations

import warnings

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from benchmarks.constructors import constructors
from fastinit import Plan, deferred, init, materialize_, recorded_plan
from fastinit.plan.groups import pattern

pytest.importorskip("transformers")
from recording import LEVEL, recorded, written

CONSTRUCTORS = constructors(small=True)


# --- real constructors --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CONSTRUCTORS)
def test_a_constructor_gives_the_same_model_with_the_same_distributions(name: str) -> None:
    """Each group of parameters (names without layer numbers, pooled) by a two-sample KS test."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model, eager = recorded(CONSTRUCTORS[name]), CONSTRUCTORS[name]()
    assert all(parameter.is_meta for parameter in model.parameters())
    assert not any(buffer.is_meta for buffer in model.buffers())
    assert materialize_(model) is model
    assert [n for n, p in model.named_parameters(remove_duplicate=False)] == [
        n for n, p in eager.named_parameters(remove_duplicate=False)
    ]
    for (key, ours), (_, theirs) in zip(model.named_buffers(), eager.named_buffers(), strict=True):
        assert torch.equal(ours, theirs), key
    groups: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for (key, ours), (_, theirs) in zip(
        model.named_parameters(), eager.named_parameters(), strict=True
    ):
        assert (ours.shape, ours.dtype, ours.requires_grad, ours.device, ours.stride()) == (
            *(theirs.shape, theirs.dtype, theirs.requires_grad, theirs.device, theirs.stride()),
        ), key
        assert not ours.is_meta, key
        group = groups.setdefault(pattern(key), ([], []))
        group[0].append(ours.detach().flatten())
        group[1].append(theirs.detach().flatten())
    for key, (ours_, theirs_) in groups.items():
        ours, theirs = torch.cat(ours_), torch.cat(theirs_)
        if theirs.std(correction=0) == 0 or torch.equal(ours, theirs):
            assert torch.equal(ours, theirs), key
        else:
            assert stats.ks_2samp(ours, theirs).pvalue > LEVEL / len(groups), key


@pytest.mark.parametrize("name", ["GPT-2", "Mamba", "nn.Transformer"])
def test_values_are_the_plans_whatever_the_order(name: str) -> None:
    first, second = written(CONSTRUCTORS[name], seed=3), written(CONSTRUCTORS[name], seed=3)
    for (key, a), b in zip(first.named_parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b), key
    other = written(CONSTRUCTORS[name], seed=4)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters()))
    torch.manual_seed(5)  # neither torch's generator nor what was drawn before has a part in it
    torch.randn(3)
    third = written(CONSTRUCTORS[name], seed=3)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), third.parameters()))


def test_siblings_may_be_built_in_any_order() -> None:
    class Pair(nn.Module):
        def __init__(self, order: str) -> None:
            super().__init__()
            made = {name: nn.Linear(8, 8) for name in order}
            self.a, self.b = made["a"], made["b"]

    ab, ba = written(lambda: Pair("ab")), written(lambda: Pair("ba"))
    assert torch.equal(ab.a.weight, ba.a.weight)
    assert torch.equal(ab.b.bias, ba.b.bias)


def test_the_generator_is_where_it_was() -> None:
    before = torch.get_rng_state()
    written(CONSTRUCTORS["GPT-2"])
    assert torch.equal(before, torch.get_rng_state())


# --- plans and places ---------------------------------------------------------------------------------


def test_materialize_elsewhere_and_as_something_else() -> None:
    model = materialize_(recorded(CONSTRUCTORS["Llama"]), device="cpu", dtype=torch.bfloat16)
    exact = written(CONSTRUCTORS["Llama"])
    for (key, ours), wanted in zip(model.named_parameters(), exact.parameters(), strict=True):
        assert torch.equal(ours, wanted.bfloat16()), key


def test_the_plan_writes_what_materialize_does(tmp_path) -> None:
    model = recorded(CONSTRUCTORS["GPT-2"])
    plan = recorded_plan(model)
    plan.save(tmp_path / "plan.json")
    loaded = Plan.load(tmp_path / "plan.json")
    assert loaded == plan
    elsewhere = loaded.apply_(CONSTRUCTORS["GPT-2"]())
    for (key, ours), wanted in zip(
        materialize_(model).named_parameters(), elsewhere.parameters(), strict=True
    ):
        assert torch.equal(ours, wanted), key


def test_diff_shows_a_recipe_not_applied() -> None:
    def small_head() -> nn.Module:
        model = CONSTRUCTORS["GPT-2"]()
        nn.init.normal_(model.transformer.h[1].mlp.c_fc.weight, std=0.5)
        return model

    usual, other = (
        recorded_plan(recorded(CONSTRUCTORS["GPT-2"])),
        recorded_plan(recorded(small_head)),
    )
    (difference,) = usual.diff(other)
    assert difference.name == "transformer.h.1.mlp.c_fc.weight"
    assert str(difference).endswith("normal, std 0.02; other: normal, std 0.5")
    assert usual.diff(recorded_plan(recorded(CONSTRUCTORS["GPT-2"], seed=9))) == []
    mamba = recorded_plan(recorded(CONSTRUCTORS["Mamba"]))
    assert mamba.diff(recorded_plan(recorded(CONSTRUCTORS["Mamba"]))) == []


def test_values_that_json_cannot_hold_are_named() -> None:
    with pytest.raises(ValueError, match=r"backbone\.layers\.0\.mixer\.A_log \(values\)"):
        recorded_plan(recorded(CONSTRUCTORS["Mamba"])).to_json()


def test_from_pretrained_keeps_what_was_loaded(tmp_path) -> None:
    """Loaded weights are not written; those that the file lacks are initialised."""
    import transformers
    from safetensors.torch import load_file, save_file

    saved = CONSTRUCTORS["GPT-2"]()
    saved.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    missing = [key for key in tensors if "h.1.mlp.c_fc" in key]
    save_file({k: v for k, v in tensors.items() if k not in missing}, file, {"format": "pt"})
    with deferred(seed=2):
        model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    materialize_(model)
    wanted = dict(saved.named_parameters())
    for key, parameter in model.named_parameters():
        drawn = key.endswith("h.1.mlp.c_fc.weight")  # its bias is 0 in both
        assert torch.equal(parameter, wanted[key]) != drawn, key
    weight = model.transformer.h[1].mlp.c_fc.weight.detach()
    drawn = init.normal_(
        torch.empty_like(weight), std=0.02, seed=2, name="transformer.h.1.mlp.c_fc.weight"
    )
    assert torch.equal(weight, drawn)
