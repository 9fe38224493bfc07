"""Models: by name, on meta, allocation, and recipes that agree with transformers' own."""

import json
import math
import os
import sys

import pytest
import torch
from torch import nn

import fastinit
from fastinit.base import memory
from fastinit.command import models
from fastinit.plan.parameters import allocate_
from fastinit.plan.plan import Plan
from fastinit.recipes import transformers_default, transformers_family

transformers = pytest.importorskip("transformers")

LLAMA = {
    "model_type": "llama",
    "vocab_size": 200,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
    "max_position_embeddings": 64,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}
GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 200,
    "n_positions": 32,
    "n_embd": 64,
    "n_layer": 2,
    "n_head": 4,
    "add_cross_attention": True,
}
SMALL_T5 = {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 1, "num_heads": 4}
QWEN2 = {**LLAMA, "model_type": "qwen2", "initializer_range": 0.05, "tie_word_embeddings": False}
MISTRAL = {**LLAMA, "model_type": "mistral", "rope_scaling": None}


@pytest.fixture(params=[LLAMA, GPT2, QWEN2, MISTRAL], ids=lambda fields: fields["model_type"])
def config(request, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(request.param))
    return models.load_config(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_recorded_model_is_the_eager_model_without_weights(config, dtype: torch.dtype) -> None:
    model = models.from_config(config, dtype)
    eager = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    assert type(model) is type(eager)
    parameters = dict(model.named_parameters(remove_duplicate=False))
    expected = dict(eager.named_parameters(remove_duplicate=False))
    assert parameters.keys() == expected.keys()
    for name, parameter in parameters.items():
        assert parameter.is_meta, name
        assert (parameter.shape, parameter.dtype) == (expected[name].shape, dtype)
    buffers, expected = dict(model.named_buffers()), dict(eager.named_buffers())
    assert buffers.keys() == expected.keys()
    for name, buffer in buffers.items():
        assert buffer.dtype == expected[name].dtype
        assert torch.equal(buffer, expected[name]), name


def test_the_recipe_agrees_with_transformers(config) -> None:
    """Constants exactly; the std of n normal values within 6 of its own std, 1 / sqrt(2 n): two-sided
    level 2e-9 for each of some 30 parameters."""
    torch.manual_seed(0)
    eager = transformers.AutoModelForCausalLM.from_config(config)
    plan = Plan.from_model(eager, transformers_default)
    for name, parameter in eager.named_parameters():
        fill, value = plan[name], parameter.detach()
        if fill.distribution == "constant":
            assert bool((value == fill.mean).all()), name
        else:
            bound = 6 / math.sqrt(2 * value.numel())
            assert value.std().item() == pytest.approx(fill.std, rel=bound), name


def test_from_config_to_a_written_model(config) -> None:
    model = models.from_config(config)
    plan = Plan.from_model(model, transformers_default, seed=1)
    with pytest.raises(ValueError, match="meta tensors hold no values"):
        plan.apply_(model)
    tied = config.tie_word_embeddings
    assert allocate_(model) is model
    plan.apply_(model)
    assert (model.lm_head.weight is model.get_input_embeddings().weight) is tied
    logits = model.eval()(torch.arange(8)[None]).logits
    assert logits.shape == (1, 8, config.vocab_size)
    assert logits.isfinite().all()

    eager = transformers.AutoModelForCausalLM.from_config(config)
    plan.apply_(eager)
    assert all(
        torch.equal(a, b) for a, b in zip(model.parameters(), eager.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("Llama-3.2-1B", 1_235_814_400),
        ("gpt2-xl", 1_557_611_200),
        ("Llama-2-7B", 6_738_415_616),
        ("Llama-3.1-70B", 70_553_706_496),
    ],
)
def test_shipped_configs_have_the_published_sizes(name: str, count: int) -> None:
    config = models.load_config(name)
    model = models.from_config(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == count
    plan = Plan.from_model(model, transformers_default)
    assert len(plan.to_json()) < 4000
    assert max(map(len, plan.table(model).splitlines())) <= 80


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", 'has no "model_type"'),
        ('{"model_type": "nope"}', "knows no model_type 'nope'"),
        ('{"model_type": "llama", "vocab_size": "many"}', "not a valid llama config"),
    ],
)
def test_bad_configs_are_refused(tmp_path, content: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        models.load_config(path)


def test_families_and_architectures_that_are_not_known_are_refused() -> None:
    with pytest.raises(ValueError, match="model_type 'opt' has no recipe"):
        transformers_family(transformers.OPTConfig())
    config = transformers.LlamaConfig(**LLAMA)
    config.architectures = ["NoSuchModel"]
    with pytest.raises(ValueError, match="no architecture 'NoSuchModel'"):
        models.from_config(config)


def test_the_causal_model_of_a_family_or_what_it_has() -> None:
    for config, kind in (
        (transformers.LlamaConfig(**LLAMA), transformers.LlamaForCausalLM),
        (transformers.T5Config(**SMALL_T5), transformers.T5ForConditionalGeneration),
        (transformers.ViTConfig(hidden_size=32, num_hidden_layers=1), transformers.ViTModel),
    ):
        assert type(models.from_config(config)) is kind


def test_a_function_by_name(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_net.py").write_text(
        "from torch import nn\n"
        "class Nets:\n    small = staticmethod(lambda: nn.Linear(3, 2))\n"
        "def text(): return 'net'\n"
        "def fails(): raise OSError('no\\nluck')\n"
    )
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    monkeypatch.setattr(sys, "path", [p for p in path if p not in ("", str(tmp_path))])
    before = list(sys.path)
    model = models.build("some_net:Nets.small", torch.float16, 5)
    assert sys.path == before
    assert model.weight.is_meta
    assert model.weight.dtype == torch.float16
    assert torch.get_default_dtype() == torch.float32
    assert fastinit.recorded_plan(model).seed == 5
    for source, message in (
        ("no_net:f", "there is no module 'no_net'"),
        ("some_net.sub:f", "some_net.sub"),
        ("some_net:nothing", "has no attribute 'nothing'"),
        ("some_net:text", "must return a torch.nn.Module, but got str"),
        ("some_net:fails", "OSError: no\nluck"),
    ):
        with pytest.raises(ValueError, match=message):
            models.build(source)
    del sys.modules["some_net"]


def test_register_parameter_is_restored_after_an_exception() -> None:
    original = nn.Module.register_parameter

    def fail_inside() -> None:
        with fastinit.deferred():
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert nn.Module.register_parameter is original
    assert not nn.Linear(2, 2).weight.is_meta


def test_parameters_on_meta_keeps_ties_flags_and_buffers() -> None:
    shared = nn.Parameter(torch.ones(3))
    with fastinit.deferred():
        a, b = nn.Module(), nn.Module()
        a.w, b.w = shared, shared
        a.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        norm = nn.BatchNorm1d(4)
    assert a.w is b.w
    assert a.w.is_meta
    assert not a.frozen.requires_grad
    assert torch.equal(norm.running_var, torch.ones(4))


def test_huge_pages_are_advice_for_large_cpu_tensors_only() -> None:
    assert not memory.advise_huge_pages(torch.empty(1000))
    assert not memory.advise_huge_pages(torch.empty(1 << 24, device="meta"))
    tensor = torch.empty(4 * memory.HUGE_PAGE, dtype=torch.uint8)
    supported = os.path.exists("/sys/kernel/mm/transparent_hugepage")
    assert memory.advise_huge_pages(tensor) == supported
    assert tensor.fill_(1).sum() == tensor.numel()


def test_dropped_pages_are_fresh_and_only_those_inside_the_tensor() -> None:
    assert not memory.drop_pages(torch.empty(8, device="meta"))
    whole = torch.ones(1 << 20)
    if not memory.drop_pages(whole):
        pytest.skip("no madvise here")
    dropped = whole.eq(0)  # the kernel gives pages of zeros; the ends of the storage stay
    page = memory.mmap.PAGESIZE // whole.element_size()
    assert dropped.sum() > whole.numel() - 2 * page
    assert dropped[page:-page].all()
    small = torch.ones(8)  # no whole page lies inside: its neighbours keep theirs
    assert memory.drop_pages(small)
    assert small.eq(1).all()
