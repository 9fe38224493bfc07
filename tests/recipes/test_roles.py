"""A recipe has laws for what a module's class has by itself, and for nothing that was added to it."""

from collections.abc import Callable
from importlib.util import find_spec
from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from fastinit import Fill, Plan, recipes
from fastinit.recipes.roles import role
from fastinit.recipes.widths import growth


def conv1d() -> nn.Module:
    from transformers.pytorch_utils import Conv1D

    return Conv1D(6, 4)


class LlamaRMSNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


MODULES: dict[str, Callable[[], nn.Module]] = {
    "Linear": lambda: nn.Linear(4, 6),
    "Linear without bias": lambda: nn.Linear(4, 6, bias=False),
    "out_proj": lambda: nn.MultiheadAttention(4, 2).out_proj,
    "Conv1d": lambda: nn.Conv1d(4, 4, 3),
    "Conv2d": lambda: nn.Conv2d(4, 6, 3),
    "Conv3d": lambda: nn.Conv3d(4, 6, 1),
    "ConvTranspose1d": lambda: nn.ConvTranspose1d(4, 6, 3),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 3),
    "ConvTranspose3d": lambda: nn.ConvTranspose3d(4, 6, 1),
    "Bilinear": lambda: nn.Bilinear(3, 4, 5),
    "Embedding": lambda: nn.Embedding(9, 4, padding_idx=1),
    "EmbeddingBag": lambda: nn.EmbeddingBag(9, 4),
    "RNN": lambda: nn.RNN(4, 6, 2, bidirectional=True),
    "LSTM": lambda: nn.LSTM(4, 6, 2, bidirectional=True, proj_size=3),
    "GRU": lambda: nn.GRU(4, 6),
    "RNNCell": lambda: nn.RNNCell(4, 6),
    "LSTMCell": lambda: nn.LSTMCell(4, 6),
    "attention": lambda: nn.MultiheadAttention(4, 2, add_bias_kv=True),
    "attention of three": lambda: nn.MultiheadAttention(4, 2, kdim=6, vdim=8),
    "LayerNorm": lambda: nn.LayerNorm((3, 4)),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "RMSNorm": lambda: nn.RMSNorm(4),
    "BatchNorm": lambda: nn.BatchNorm2d(4),
    "LlamaRMSNorm": LlamaRMSNorm,
    "PReLU": lambda: nn.PReLU(),
    **({"Conv1D": conv1d} if find_spec("transformers") else {}),
}
EXTRAS: dict[str, tuple[int, ...]] = {
    **{"gain": (6,), "magnitude": (6, 1), "temperature": (2,), "gate": (6, 4)},
    **{"lora_A": (2, 4), "lora_B": (6, 2), "lora_embedding_A": (2, 9), "lora_embedding_B": (4, 2)},
    **{"weight_g": (6, 1), "weight_v": (6, 4), "weight_orig": (6, 4), "bias_orig": (6,)},
    **{"weight_scale": (6,), "weight_scale_inv": (2, 2), "bias_scale": (6,), "qweight": (6, 4)},
    **{"weights": (6, 4), "weight_": (6, 4), "biases": (6,), "in_proj_lora": (2, 4)},
    **{"weight_ih_l7": (6, 4), "weight_hh_l0_up": (6, 6), "bias_ih_l2_reverse": (6,)},
    **{"bias_q": (1, 1, 4)},
}  # fmt: skip

CONFIG = SimpleNamespace(
    **{"n_layer": 2, "hidden_size": 4, "d_model": 4, "d_kv": 2, "d_ff": 6, "num_heads": 2},
    **{"vocab_size": 9, "num_hidden_layers": 2, "time_step_rank": 2, "time_step_scale": 1.0},
    **{"time_step_min": 0.01, "time_step_max": 0.1, "time_step_floor": 1e-4},
    **{"time_step_init_scheme": "random", "rescale_prenorm_residual": True},
    **{"encoder_layers": 2, "decoder_layers": 2, "branches": 3, "model_type": "llama"},
)
RULES = recipes.NAMES
PLACES = ("q", "fc1", "c_proj", "layer1.conv1", "dt_proj", "conv1d", "out_proj")
"""Names of modules that rules look at."""


def covered(rule: recipes.Rule, module: nn.Module, place: str = "q") -> dict[str, Fill]:
    """What a rule has for each parameter that is the module's own or in it."""
    fills = {}
    for prefix, owner in module.named_modules():
        for own, parameter in owner.named_parameters(recurse=False):
            name = ".".join(filter(None, (place, prefix, own)))
            if (fill := rule(name, owner, parameter.shape, CONFIG)) is not None:
                fills[f"{prefix}.{own}".strip(".")] = fill
    return fills


@pytest.mark.parametrize("name", RULES)
def test_what_a_subclass_adds_has_no_law(name: str) -> None:
    """And what its class has keeps the law that it has there."""
    for build in MODULES.values():
        module = build()
        plain = [covered(RULES[name], module, place) for place in PLACES]
        module.__class__ = type(type(module).__name__, (type(module),), {})
        for extra, shape in EXTRAS.items():
            module.register_parameter(extra, nn.Parameter(torch.zeros(shape)))
        assert [covered(RULES[name], module, place) for place in PLACES] == plain, module


@pytest.mark.parametrize("kind", MODULES)
def test_all_that_a_class_has_has_a_role(kind: str) -> None:
    module = MODULES[kind]()
    for own, parameter in module.named_parameters(recurse=False):
        wanted = "bias" if "bias" in own else "weight"
        known = role(f"a.{own}", module, parameter.shape)
        assert known == (None if kind == "LlamaRMSNorm" else wanted), own
        plan = covered(recipes.torch_default, module)
        assert own in plan or kind in ("LlamaRMSNorm", "Conv1D")


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
def test_what_is_added_is_listed() -> None:
    class LoRA(nn.Linear):
        def __init__(self) -> None:
            super().__init__(4, 6)
            self.lora_A = nn.Parameter(torch.zeros(2, 4))
            self.gain = nn.Parameter(torch.ones(6))

    model = nn.Sequential(LoRA(), nn.utils.weight_norm(nn.Linear(4, 6)))
    with pytest.raises(
        ValueError,
        match=r"no Fill for parameters 0\.lora_A \(LoRA\), 0\.gain \(LoRA\), 1\.weight_g \(Linear\), "
        r"1\.weight_v \(Linear\)$",
    ):
        Plan.from_model(model, recipes.torch_default)
    mine = recipes.by_name(
        {"*.lora_A": Fill.constant(0.0), "*_v": Fill.normal(), "*_g": Fill.uniform()}
    )
    rest = recipes.by_name({"*.gain": Fill.constant(1.0)})
    plan = Plan.from_model(model, recipes.first_of(mine, rest, recipes.torch_default))
    assert set(plan) == {name for name, _ in model.named_parameters()}


@pytest.mark.parametrize("kind", [k for k in MODULES if k not in ("LlamaRMSNorm", "Conv1D")])
def test_what_resets_itself_has_no_law_of_torch(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a class or by itself; where torch's own class is told to do nothing, its law is what it was."""
    plain = MODULES[kind]()
    reset = "_reset_parameters" if "attention" in kind else "reset_parameters"
    for base in type(plain).__mro__:
        if reset in vars(base):
            monkeypatch.setattr(base, reset, lambda self: None)
    own = MODULES[kind]()
    own.__class__ = type("Own", (type(own),), {reset: lambda self: None})
    itself = MODULES[kind]()
    setattr(itself, reset, lambda: None)
    names = {name for name, _ in plain.named_parameters(recurse=False)}
    assert covered(recipes.torch_default, plain).keys() & names == names
    for module in (own, itself):
        assert not covered(recipes.torch_default, module).keys() & names


class Twice(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return 2 * weight


def pruned(module: nn.Module) -> nn.Module:
    return prune.l1_unstructured(module, "weight", 0.5)


PARAMETRISED: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "weight_norm": (lambda: parametrizations.weight_norm(nn.Linear(4, 6)), {"bias"}),
    "orthogonal": (lambda: parametrizations.orthogonal(nn.Linear(4, 6)), {"bias"}),
    "spectral_norm": (lambda: parametrizations.spectral_norm(nn.Conv1d(4, 6, 3)), {"bias"}),
    "one's own, of a bias": (
        lambda: parametrize.register_parametrization(nn.Linear(4, 6), "bias", Twice()),
        {"weight"},
    ),
    "old weight_norm": (lambda: nn.utils.weight_norm(nn.Linear(4, 6)), {"bias"}),
    "old spectral_norm": (lambda: nn.utils.spectral_norm(nn.Linear(4, 6)), {"bias"}),
    "pruned": (lambda: pruned(nn.Linear(4, 6)), {"bias"}),
    "of an LSTM": (
        lambda: parametrizations.weight_norm(nn.LSTM(4, 6), "weight_hh_l0"),
        {"weight_ih_l0", "bias_ih_l0", "bias_hh_l0"},
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("case", PARAMETRISED)
def test_what_a_parametrisation_holds_has_no_law(case: str) -> None:
    build, own = PARAMETRISED[case]
    module = build()
    assert set(covered(recipes.torch_default, module)) == own
    for name, rule in RULES.items():
        assert set(covered(rule, module)) <= own, name


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.zeros(shape))


def exchanged(module: nn.Module, **others: nn.Parameter | None) -> nn.Module:
    for own, other in others.items():
        setattr(module, own, other)
    return module


EXCHANGED: dict[str, tuple[Callable[[], nn.Module], set[str]]] = {
    "another bias": (lambda: exchanged(nn.Linear(4, 6), bias=parameter(6)), {"weight", "bias"}),
    "a matrix for a bias": (lambda: exchanged(nn.Linear(4, 6), bias=parameter(6, 2)), {"weight"}),
    "one number for a bias": (lambda: exchanged(nn.Linear(4, 6), bias=parameter()), {"weight"}),
    "no bias": (lambda: exchanged(nn.Linear(4, 6), bias=None), {"weight"}),
    "experts": (lambda: exchanged(nn.Linear(4, 6), weight=parameter(3, 6, 4)), set()),
    "a packed weight": (lambda: exchanged(nn.Linear(4, 6), weight=parameter(24)), set()),
    "no weight": (lambda: exchanged(nn.Linear(4, 6), weight=None), set()),
    "a vector for a table": (lambda: exchanged(nn.Embedding(4, 6), weight=parameter(24)), set()),
    "a matrix for a kernel": (lambda: exchanged(nn.Conv2d(4, 6, 3), weight=parameter(6, 4)), set()),
    "a matrix for gates' bias": (
        lambda: exchanged(nn.GRUCell(4, 6), bias_ih=parameter(3, 6)),
        {"weight_ih", "weight_hh", "bias_hh"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", EXCHANGED)
def test_what_has_another_form_has_no_law(case: str) -> None:
    build, own = EXCHANGED[case]
    module = build()
    assert set(covered(recipes.torch_default, module)) == own
    of_weight = {"bias"} & {
        n for n, p in module.named_parameters() if p.shape == (6,)
    }  # 0 in others
    for (name, rule), place in product(RULES.items(), PLACES):
        assert set(covered(rule, module, place)) <= own | of_weight, name


def test_mup_takes_for_matrices_what_multiplies() -> None:
    """Of an LSTM whose projection stays, the projection is an output weight; tables have rows first."""
    lstm = nn.LSTM(4, 8, proj_size=2)
    cases: list[tuple[str, nn.Module, tuple[int, ...], tuple[int, ...], tuple[float, float]]] = [
        ("weight_hr_l0", lstm, (2, 32), (2, 8), (4.0, 1.0)),
        ("weight_ih_l0", lstm, (128, 4), (32, 4), (1.0, 4.0)),
        ("weight_hh_l0", nn.LSTM(4, 8), (128, 32), (32, 8), (4.0, 4.0)),
        ("bias_ih_l0", lstm, (128,), (32,), (1.0, 4.0)),
        ("weight", nn.Linear(4, 6), (6, 16), (6, 4), (4.0, 1.0)),
        ("weight", nn.Bilinear(3, 4, 5), (5, 12, 4), (5, 3, 4), (4.0, 1.0)),
        ("weight", nn.EmbeddingBag(9, 4), (9, 16), (9, 4), (1.0, 4.0)),
        ("weight", nn.LayerNorm((3, 4)), (3, 16), (3, 4), (1.0, 4.0)),
        ("lora_embedding_B", nn.Embedding(9, 4), (16, 2), (4, 2), (1.0, 4.0)),
        ("in_proj_weight", nn.MultiheadAttention(4, 2), (48, 16), (12, 4), (4.0, 4.0)),
    ]
    for own, module, shape, base, wanted in cases:
        assert growth(f"a.{own}", module, shape, base) == wanted, own


def test_a_rule_is_asked_with_any_config() -> None:
    config: Any = vars(CONFIG)
    for name, rule in RULES.items():
        assert rule("a.lora_A", nn.Linear(4, 6), torch.Size([2, 4]), config) is None, name
