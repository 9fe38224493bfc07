"""LSUV: every layer's output has the std asked for after one pass, and failures change nothing."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from fastinit.variance.lsuv import schedules
from fastinit.variance.lsuv.affine import LSUVError
from fastinit.variance.lsuv.lsuv import lsuv_
from fastinit.variance.transfer import transfer_scale_
from tests.running_models import differences, everything

# Weights and outputs are rounded to float32 after the scale is known: some 1e-6 of the std.
EXACT = pytest.approx(1.0, abs=1e-5)


def mlp(depth: int = 6, width: int = 64, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        *(m for _ in range(depth) for m in (nn.Linear(width, width, bias=bias), nn.ReLU()))
    )


def stds(model: nn.Module, *inputs: Any, **kwargs: Any) -> dict[str, float]:
    """What a plain forward pass gives, by module."""
    found: dict[str, float] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, out: Any) -> None:
            out = out[0] if isinstance(out, tuple) else out
            found.setdefault(name, out.float().std().item())

        return hook

    handles = [
        module.register_forward_hook(watch(name))
        for name, module in model.named_modules()
        if getattr(module, "weight", None) is not None or isinstance(module, nn.MultiheadAttention)
    ]
    with torch.no_grad():
        model(*inputs, **kwargs)
    for handle in handles:
        handle.remove()
    return found


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert differences(before, after) == []


@pytest.mark.parametrize("bias", [True, False])
def test_one_forward_and_every_layer_has_unit_std(bias: bool) -> None:
    model, x = mlp(30, bias=bias), torch.randn(256, 64)
    forwards = []
    model.register_forward_pre_hook(lambda module, args: forwards.append(args))
    result = lsuv_(model, x)
    assert len(forwards) == result.passes == 1
    found = stds(model, x)
    assert len(found) == 30
    for measured in result.layers:
        assert measured.std == EXACT
        assert found[measured.name] == EXACT
    assert list(result.scales) == [str(2 * i) for i in range(30)]


CONVOLUTIONS = {
    "1d": (nn.Conv1d(4, 6, 3), nn.ConvTranspose1d(6, 5, 3), (8, 4, 30)),
    "2d": (nn.Conv2d(4, 6, 3, stride=2), nn.ConvTranspose2d(6, 5, 3, groups=1), (8, 4, 15, 17)),
    "3d": (nn.Conv3d(4, 6, 2), nn.ConvTranspose3d(6, 5, 2), (3, 4, 6, 7, 8)),
    "no batch": (nn.Conv2d(4, 6, 3), nn.Conv2d(6, 5, 3), (4, 20, 20)),
}


@pytest.mark.parametrize("kind", CONVOLUTIONS)
def test_convolutions(kind: str) -> None:
    first, second, shape = CONVOLUTIONS[kind]
    model, x = nn.Sequential(first, nn.Tanh(), second), torch.randn(shape)
    if kind == "2d":
        model, x = (
            model.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
        )
    lsuv_(model, x)
    found = stds(model, x)
    assert found["0"] == EXACT
    assert found["2"] == EXACT


def test_embeddings_bilinear_and_attention() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 32, padding_idx=0)
            self.attend = nn.MultiheadAttention(32, 4, batch_first=True)
            self.mix = nn.Bilinear(32, 32, 16)
            self.idle = nn.Linear(3, 3)

        def forward(self, tokens: Tensor) -> Tensor:
            x = self.embed(tokens)
            return self.mix(x, self.attend(x, x, x)[0])

    model, tokens = Net(), torch.randint(1, 50, (8, 20))
    nn.init.normal_(model.attend.out_proj.bias, std=0.3)
    result = lsuv_(model, tokens)
    found = stds(model, tokens)
    assert found == dict.fromkeys(("embed", "attend", "mix"), EXACT)
    assert model.embed.weight[0].eq(0).all()
    projections = [f"attend.{x}_proj" for x in ("q", "k", "v", "out")]
    assert [m.name for m in result.layers] == ["embed", *projections, "mix"]
    assert result.passed == {"idle": "not called"}


class Attend(nn.Module):
    """Attention from one sequence to another, called in several ways."""

    def __init__(self, **options: Any) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(32, 4, **options)
        self.after = nn.Linear(32, 8)
        if self.attend.in_proj_bias is not None:
            nn.init.normal_(self.attend.in_proj_bias, std=0.3)

    def forward(self, x: Tensor, y: Tensor | None = None, z: Tensor | None = None) -> Tensor:
        if y is None:
            return self.after(self.attend(x, x, x, need_weights=False)[0])
        return self.after(self.attend(x, value=y if z is None else z, key=y)[0])


def projections(model: Attend, *inputs: Tensor) -> dict[str, Tensor]:
    """What the attention's q, k and v are in a plain forward pass, by plain torch."""
    seen: dict[str, Tensor] = {}

    def look(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        seen.update(
            zip("qkv", args), **{n[0]: x for n, x in kwargs.items() if n in ("key", "value")}
        )

    handle = model.attend.register_forward_pre_hook(look, with_kwargs=True)
    with torch.no_grad():
        model(*inputs)
    handle.remove()
    attend, found = model.attend, {}
    for i, name in enumerate("qkv"):
        weight = (
            attend.in_proj_weight[32 * i : 32 * (i + 1)]
            if attend.in_proj_weight is not None
            else getattr(attend, f"{name}_proj_weight")
        )
        found[name] = seen[name] @ weight.detach().T
        if attend.in_proj_bias is not None:
            found[name] += attend.in_proj_bias.detach()[32 * i : 32 * (i + 1)]
    return found


ATTENTIONS: dict[str, tuple[dict[str, Any], list[tuple[int, ...]]]] = {
    "self": ({"batch_first": True}, [(8, 20, 32)]),
    "cross": ({}, [(20, 8, 32), (30, 8, 32)]),
    "one sequence": ({"bias": False}, [(20, 32)]),
    "other widths": ({"kdim": 24, "vdim": 16}, [(20, 8, 32), (30, 8, 24), (30, 8, 16)]),
    "no bias, other widths": ({"kdim": 24, "bias": False}, [(20, 8, 32), (30, 8, 24), (30, 8, 32)]),
    "added keys": ({"add_bias_kv": True, "add_zero_attn": True}, [(20, 8, 32), (30, 8, 32)]),
}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_input_projections_of_attention(kind: str, training: bool) -> None:
    options, shapes = ATTENTIONS[kind]
    model, inputs = Attend(**options).train(training), [torch.randn(shape) for shape in shapes]
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    result = lsuv_(model, *inputs, target_std={"attend.k_proj": 0.7})
    for name, out in projections(model, *inputs).items():
        assert out.std().item() == pytest.approx(0.7 if name == "k" else 1.0, rel=1e-5)
    found = stds(model, *inputs)
    assert found == dict.fromkeys(("attend", "after"), EXACT)
    names = [f"attend.{x}_proj" for x in ("q", "k", "v", "out")]
    assert [m.name for m in result.layers] == [*names, "after"]
    assert len(set(result.scales.values())) == 5
    for name, parameter in model.named_parameters():
        if name == "attend.in_proj_weight":
            scales = torch.tensor([result.scales[n] for n in names[:3]]).repeat_interleave(32)
            torch.testing.assert_close(parameter, before[name] * scales[:, None])
        elif name.endswith("_proj_weight"):
            scale = result.scales[name.removesuffix("_weight")]
            torch.testing.assert_close(parameter, before[name] * scale)
        elif not name.endswith("weight"):
            assert parameter.equal(before[name])
    table = result.table()
    assert all(table.count(name) == 1 for name in names)


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        ("attend", ["attend.q_proj", "attend.k_proj", "attend.v_proj", "attend.out_proj"]),
        (
            nn.MultiheadAttention,
            ["attend.q_proj", "attend.k_proj", "attend.v_proj", "attend.out_proj"],
        ),
        (["attend.k_proj", "after"], ["attend.k_proj", "after"]),
        (["attend.out_proj"], ["attend.out_proj"]),
        (lambda name, module: name.endswith("v_proj"), ["attend.v_proj"]),
    ],
)
def test_projections_to_choose(which: Any, expected: list[str]) -> None:
    model, x = Attend(), torch.randn(20, 8, 32)
    rows = model.attend.in_proj_weight.detach().clone().chunk(3)
    result = lsuv_(model, x, layers=which)
    assert [m.name for m in result.layers] == expected
    for name, old, new in zip("qkv", rows, model.attend.in_proj_weight.chunk(3)):
        assert new.equal(old) != (f"attend.{name}_proj" in expected)


def test_projections_over_batches_centered_and_after_the_activation() -> None:
    model, x = Attend(), torch.randn(20, 30, 32) * torch.linspace(0.2, 3, 30)[:, None] + 0.5
    nn.init.zeros_(model.attend.in_proj_bias)
    result = lsuv_(model, batches=[x[:, :10], x[:, 10:]])
    assert 1 < result.passes <= 3
    for out in projections(model, x).values():
        assert out.var().item() == pytest.approx(1.0, abs=0.02)
    lsuv_(model, x, center=True)
    for out in projections(model, x).values():
        assert (out.std().item(), out.mean().item()) == (EXACT, pytest.approx(0.0, abs=1e-5))
    lsuv_(model, x, activation=torch.relu)
    for out in projections(model, x).values():
        assert out.relu().var().item() == pytest.approx(1.0, abs=0.02)


def test_orthonormal_projections() -> None:
    model, x = Attend(), torch.randn(20, 8, 32)
    result = lsuv_(model, x, pre="orthonormal")
    for name, weight in zip("qkv", model.attend.in_proj_weight.detach().chunk(3)):
        gram = weight @ weight.T / result.scales[f"attend.{name}_proj"] ** 2
        torch.testing.assert_close(gram, torch.eye(32), atol=1e-5, rtol=0)


def test_tied_and_frozen_projections() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.MultiheadAttention(32, 4) for _ in range(3))
            self.b.in_proj_weight = self.a.in_proj_weight
            self.c.in_proj_weight.requires_grad_(False)
            nn.init.normal_(self.b.in_proj_bias, std=0.3)

        def forward(self, x: Tensor) -> Tensor:
            for attend in (self.a, self.b, self.c):
                x = attend(x, x, x)[0]
            return x

    model, x = Net(), torch.randn(20, 8, 32)
    frozen, bias = model.c.in_proj_weight.clone(), model.b.in_proj_bias.detach().clone()
    result = lsuv_(model, x, center=True)
    assert stds(model, x) == dict.fromkeys("abc", EXACT)  # b saw a's scales
    notes = {m.name: m.note for m in result.layers if m.note}
    tied = {f"b.{n}_proj": f"tied to a.{n}_proj" for n in "qkv"}
    assert notes == tied | {f"c.{n}_proj": "frozen" for n in "qkv"}
    assert model.c.in_proj_weight.equal(frozen)
    assert model.b.in_proj_bias.equal(bias)


def test_keys_and_values_with_one_weight() -> None:
    model = Attend(kdim=24, vdim=24)
    model.attend.v_proj_weight = model.attend.k_proj_weight
    inputs = [torch.randn(20, 8, 32), torch.randn(30, 8, 24)]
    value_bias = model.attend.in_proj_bias.detach()[64:].clone()
    result = lsuv_(model, *inputs, center=True)
    assert projections(model, *inputs)["k"].std().item() == EXACT
    assert model.attend.in_proj_bias[64:].equal(value_bias)
    assert stds(model, *inputs)["attend"] == EXACT
    assert {m.name: m.note for m in result.layers}["attend.v_proj"] == "tied to attend.k_proj"


def test_tied_layers_with_biases_of_their_own() -> None:
    model = nn.Sequential(
        nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
    )
    model[2].weight = model[0].weight
    bias, x = model[2].bias.detach().clone(), torch.rand(99, 32)
    lsuv_(model, x, center=True)
    assert model[2].bias.equal(bias)
    assert stds(model, x)["4"] == EXACT  # so it saw the second as it now is
    assert model(x).mean().item() == pytest.approx(0.0, abs=1e-5)


def test_attention_with_a_forward_of_its_own_keeps_its_input_projections() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x, x, x)

    model, x = nn.Sequential(Own(32, 4)), torch.randn(20, 8, 32)
    weight = model[0].in_proj_weight.detach().clone()
    result = lsuv_(model, x)
    assert model[0].in_proj_weight.equal(weight)
    assert [m.name for m in result.layers] == ["0.out_proj"]
    assert set(result.passed) == {"0.q_proj", "0.k_proj", "0.v_proj"}
    with torch.no_grad():
        assert model(x)[0].std().item() == EXACT


def test_nested_tensors_are_an_error() -> None:
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 1).eval(), torch.randn(4, 10, 32)
    mask = torch.zeros(4, 10, dtype=torch.bool)
    mask[1, 6:] = True
    before = everything(model)
    with pytest.raises(LSUVError, match=r"self_attn\.q_proj is a nested tensor"):
        lsuv_(model, x, src_key_padding_mask=mask)
    assert_same(before, everything(model))


def test_transformers_models() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=100, n_positions=32, n_embd=32, n_layer=2, n_head=2)
    model = transformers.GPT2LMHeadModel(config).eval()
    result = lsuv_(model, input_ids=torch.randint(0, 100, (4, 32)))
    notes = {m.name: m.note for m in result.layers}
    assert notes["lm_head"] == "tied to transformer.wte"
    assert notes["transformer.h.1.mlp.c_proj"] == ""
    for measured in result.layers:
        if not measured.note:
            assert measured.std == EXACT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    model, x = mlp(8).to(dtype), torch.randn(512, 64, dtype=dtype)
    lsuv_(model, x)
    # Each layer's weights and outputs are rounded (bfloat16: to 2^-9), and the next sees that.
    for std in stds(model, x).values():
        assert std == pytest.approx(1.0, abs=8 * 2.0**-9)


def test_execution_order_decides_not_registration() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.first(x))

    result = lsuv_(Net(), torch.randn(100, 8), target_std=schedules.alternating(1.25))
    assert [m.name for m in result.layers] == ["first", "last"]
    assert [m.target for m in result.layers] == [math.sqrt(1.25), 1.0]
    assert result.product == 1.0


def test_targets_by_number_and_by_name() -> None:
    model, x = mlp(3), torch.randn(256, 64)
    lsuv_(model, x, target_std=0.5)
    assert stds(model, x)["4"] == pytest.approx(0.5, rel=1e-5)
    lsuv_(model, x, target_std={"2": 3.0})
    found = stds(model, x)
    assert (found["0"], found["2"]) == (EXACT, pytest.approx(3.0, rel=1e-5))


@pytest.mark.parametrize(
    ("which", "expected"),
    [
        (nn.Conv2d, ["0"]),
        ((nn.Linear,), ["3"]),
        (["3"], ["3"]),
        ("0", ["0"]),
        (lambda name, module: name == "0", ["0"]),
    ],
)
def test_layers_to_choose(which: Any, expected: list[str]) -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5))
    result = lsuv_(model, torch.randn(9, 1, 8, 8), layers=which)
    assert [m.name for m in result.layers] == expected


def test_tied_frozen_and_computed_weights() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
            self.head.weight = self.embed.weight
            self.frozen = nn.Linear(16, 16).requires_grad_(False)
            self.normed = parametrizations.spectral_norm(nn.Linear(16, 16))

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(self.normed(self.frozen(self.embed(tokens))))

    model, tokens = Net().eval(), torch.randint(0, 40, (16, 16))
    frozen = model.frozen.weight.clone()
    result = lsuv_(model, tokens)
    notes = {m.name: m.note for m in result.layers}
    assert notes == {"embed": "", "frozen": "frozen", "head": "tied to embed"}
    assert result.passed["normed"] == "its weight is computed"
    found = stds(model, tokens)
    assert found["embed"] == EXACT
    assert model.frozen.weight.equal(frozen)
    head = next(m for m in result.layers if m.name == "head")
    assert found["head"] == pytest.approx(head.std, rel=1e-5)  # as it is, with the scaled weight


class Loop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(3):
            x = torch.tanh(self.step(x))
        return x


def test_a_module_called_several_times() -> None:
    model, x = Loop(), torch.randn(200, 32)
    first = lsuv_(model, x)
    assert stds(model, x)["step"] == EXACT
    assert first.layers[0].calls == 3
    pooled = lsuv_(model, x, reuse="pool")
    assert 1 < pooled.passes <= 3
    outputs: list[Tensor] = []
    model.step.register_forward_hook(lambda module, args, out: outputs.append(out.detach()))
    model(x)
    assert torch.cat(outputs).var().item() == pytest.approx(1.0, abs=0.02)


def test_batches_count_together() -> None:
    model, x = mlp(4), torch.randn(400, 64) * torch.linspace(0.2, 3, 400)[:, None]
    parts = [x[:100], (x[100:150],), {"input": x[150:]}]
    result = lsuv_(model, batches=parts)
    assert result.passes <= 3
    for std in stds(model, x).values():
        assert std**2 == pytest.approx(1.0, abs=0.02)
    whole = mlp(4)
    whole.load_state_dict(model.state_dict())
    lsuv_(whole, x)
    for a, b in zip(whole.parameters(), model.parameters()):
        torch.testing.assert_close(a, b, rtol=0.03, atol=1e-6)


def test_after_the_activation() -> None:
    model, x = mlp(4), torch.randn(256, 64)
    lsuv_(model, x, activation=torch.relu)
    h = x
    for module in model:
        h = module(h)
        if isinstance(module, nn.ReLU):
            assert h.var().item() == pytest.approx(1.0, abs=0.02)


def test_center() -> None:
    model, x = mlp(4), torch.rand(256, 64)
    result = lsuv_(model, x, center=True)
    h = x
    for module in model:
        h = module(h)
        if isinstance(module, nn.Linear):
            assert h.mean().item() == pytest.approx(0.0, abs=1e-5)
            assert h.std().item() == EXACT
    assert all(m.shift != 0 for m in result.layers)


def test_a_layer_that_is_not_affine_is_repeated_alone() -> None:
    calls: list[Tensor] = []

    class Squash(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(32, 32) * 0.01)

        def forward(self, x: Tensor) -> Tensor:
            calls.append(x)
            return torch.sinh(x @ self.weight)

    model, x = nn.Sequential(nn.Linear(16, 32), Squash(), nn.Linear(32, 4)), torch.randn(300, 16)
    result = lsuv_(model, x, layers=(nn.Linear, Squash))
    assert len(calls) == result.layers[1].iterations > 2
    found = stds(model, x)
    assert found["1"] ** 2 == pytest.approx(1.0, abs=0.02)
    assert found["2"] == EXACT
    few = lsuv_(model, x * 9, layers=Squash, max_iter=1)
    assert few.layers[0].note == "not within 0.02 after 1"


def test_orthonormal_first() -> None:
    model, x = mlp(3, bias=False), torch.randn(256, 64)
    result = lsuv_(model, x, pre="orthonormal")
    for measured, module in zip(result.layers, model[::2]):
        gram = module.weight @ module.weight.T / measured.scale**2
        torch.testing.assert_close(gram, torch.eye(64), atol=1e-5, rtol=0)
        assert measured.std == EXACT


class Fault(nn.Module):
    """Does something at its turn."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x)


def interrupt(x: Tensor) -> Tensor:
    raise KeyboardInterrupt


def out_of_memory(x: Tensor) -> Tensor:
    raise torch.OutOfMemoryError("CUDA out of memory")


def with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x.view(-1)[3] = math.nan
    return x


FAULTS: dict[str, tuple[Callable[[Tensor], Tensor], type[BaseException], str]] = {
    "interrupt": (interrupt, KeyboardInterrupt, "^$"),
    "out of memory": (out_of_memory, torch.OutOfMemoryError, "out of memory"),
    "NaN": (with_nan, LSUVError, r"output of \d+ has values that are not finite: Moments\(count="),
    "infinity": (lambda x: x / 0, LSUVError, "not finite"),
    "dead": (torch.zeros_like, LSUVError, r"\d+ is dead"),
    "empty": (lambda x: x[:0], LSUVError, r"output of \d+ has fewer than two values"),
}


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_at_any_layer_changes_nothing(fault: str, place: int) -> None:
    act, error, message = FAULTS[fault]
    layers: list[nn.Module] = []
    for i in range(4):
        layers += [Fault(act)] if i == place else []
        layers += [nn.Linear(8, 8, bias=False), nn.BatchNorm1d(8), nn.Dropout(0.1)]
    model = nn.Sequential(*layers)
    before = everything(model)
    with pytest.raises(error, match=message):
        lsuv_(model, torch.ones(16, 8).uniform_(generator=torch.Generator()), pre="orthonormal")
    assert_same(before, everything(model))


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("place", ["inside", "after"])
@pytest.mark.parametrize("widths", [{}, {"kdim": 24, "vdim": 16}])
def test_a_fault_in_attention_changes_nothing(
    monkeypatch: pytest.MonkeyPatch,
    widths: dict[str, int],
    place: str,
    error: type[BaseException],
) -> None:
    model = Attend(**widths)
    inputs = [torch.randn(20, 8, 32)] + [torch.randn(30, 8, n) for n in widths.values()]
    within: list[Tensor] = []

    def act(*args: Any, **kwargs: Any) -> Any:
        within.append(next(model.attend.parameters()).clone())
        raise error("at its turn")

    if place == "after":
        model.after = nn.Sequential(Fault(act))
    else:
        monkeypatch.setattr(nn.functional, "multi_head_attention_forward", act)
    before = everything(model)
    with pytest.raises(error, match="at its turn"):
        lsuv_(model, *inputs, center=True)
    assert_same(before, everything(model))
    assert within[0].equal(next(model.attend.parameters())) == (place == "after")
    with pytest.raises(error, match="at its turn"):
        lsuv_(model, *inputs, pre="orthonormal", center=True)
    assert_same(before, everything(model))


def test_attention_that_fails_and_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, tries = nn.functional.multi_head_attention_forward, []

    def attend(*args: Any, **kwargs: Any) -> Any:
        tries.append(args)
        if len(tries) == 1:
            raise RuntimeError("at its turn")
        return plain(*args, **kwargs)

    class Patient(Attend):
        def forward(self, *inputs: Tensor) -> Tensor:
            try:
                return super().forward(*inputs)
            except RuntimeError:
                return super().forward(*inputs)

    model, x = Patient(), torch.randn(20, 8, 32)
    monkeypatch.setattr(nn.functional, "multi_head_attention_forward", attend)
    lsuv_(model, x)
    assert len(tries) == 2
    assert stds(model, x)["after"] == EXACT
    for out in projections(model, x).values():
        assert out.std().item() == EXACT


def test_a_bias_larger_than_the_target_is_an_error() -> None:
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(64, 8)
    nn.init.normal_(model[0].bias, std=2.0)
    before = everything(model)
    with pytest.raises(LSUVError, match=r"0: the variance of its bias alone, .* is not below"):
        lsuv_(model, x)
    assert_same(before, everything(model))


def test_an_iterator_that_ends_is_an_error() -> None:
    def once() -> Iterator[Tensor]:
        yield from (torch.randn(8, 64), torch.randn(8, 64) * 5)

    with pytest.raises(ValueError, match="batches must not be empty, but was in pass 2"):
        lsuv_(mlp(2), batches=once())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_std": 0.0}, "target_std must be positive and finite, but got 0.0"),
        ({"target_std": {"0": -1.0}}, r"target_std\['0'\] must be positive"),
        ({"target_std": {"nobody": 1.0}}, "target_std names layers that are not: nobody"),
        ({"tol": 0.0}, "tol must be in"),
        ({"max_iter": 0}, "max_iter must be at least 1"),
        ({"pre": "random"}, "pre must be"),
        ({"reuse": "last"}, "reuse must be"),
        ({"layers": ["nobody"]}, "layers names modules that the model has not: nobody"),
        ({"batches": [torch.zeros(2, 64)]}, "batches and inputs exclude each other"),
    ],
)
def test_bad_arguments(arguments: dict[str, Any], message: str) -> None:
    model = mlp(2)
    before = everything(model)
    with pytest.raises(ValueError, match=message):
        lsuv_(model, torch.zeros(4, 64), **arguments)
    with pytest.raises(TypeError, match="layers must be types, names or a predicate, but got 7"):
        lsuv_(model, torch.zeros(4, 64), layers=7)
    assert_same(before, everything(model))


def test_a_head_that_is_never_built() -> None:
    model, x = (
        nn.Sequential(mlp(2), nn.Linear(64, 500, bias=False), nn.Softmax(-1)),
        torch.randn(99, 64),
    )
    built = copy.deepcopy(model)
    ran = []
    model[2].register_forward_hook(lambda *args: ran.append(args))
    result = lsuv_(model, x, unbuilt="1")
    assert not ran
    lsuv_(built, x)
    for a, b in zip(model.parameters(), built.parameters()):
        torch.testing.assert_close(a, b)
    assert result.layers[-1].name == "1"
    assert stds(model, x)["1"] == EXACT
    with pytest.raises(ValueError, match=r"unbuilt must name a Linear without a bias, but '0\.2'"):
        lsuv_(model, x, unbuilt="0.2")
    with pytest.raises(ValueError, match="unbuilt must name one of the layers, a Linear"):
        lsuv_(model, x, unbuilt="2")


class Capped(nn.Linear):
    """As Gemma's logits."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


def _capped_by(hook: Callable[[nn.Linear], object]) -> Callable[[], nn.Linear]:
    def make() -> nn.Linear:
        head = nn.Linear(64, 50, bias=False)
        hook(head)
        return head

    return make


def _own_forward(head: nn.Linear) -> None:
    plain = head.forward
    head.forward = lambda x: plain(x).tanh()  # type: ignore[method-assign]


def _written(head: nn.Linear) -> None:
    before = head.weight.detach().clone()

    def hook(module: Any, args: Any) -> None:
        module.weight.data.copy_(before)

    head.register_forward_pre_hook(hook)


OTHER_HEADS: dict[str, tuple[Callable[[], nn.Linear], str]] = {
    "a class": (lambda: Capped(64, 50, bias=False), "has a forward of its own"),
    "an attribute": (_capped_by(_own_forward), "has a forward of its own"),
    "a hook": (
        _capped_by(lambda head: head.register_forward_hook(lambda m, args, out: out.tanh())),
        "has a forward hook, which may change it",
    ),
    "a weight that is written": (_capped_by(_written), "its weight is written before it runs"),
}


@pytest.mark.parametrize("name", OTHER_HEADS)
def test_a_head_that_is_more_than_its_weight_is_built(name: str) -> None:
    make, message = OTHER_HEADS[name]
    model, x = nn.Sequential(mlp(2), make()), torch.randn(99, 64)
    before = everything(model)
    with pytest.raises((ValueError, LSUVError), match=message):
        lsuv_(model, x, unbuilt="1")
    assert_same(before, everything(model))


def test_the_table_fits_a_terminal() -> None:
    table = lsuv_(mlp(3), torch.randn(64, 64)).table()
    assert all(len(line) <= 80 for line in table.splitlines())
    assert "target" in table


def test_transfer_scale_leaves_the_function() -> None:
    model, x = mlp(2), torch.randn(64, 64)
    before, weight = model(x), model[0].weight.clone()
    transfer_scale_(model[0], model[2], 4.0)  # a power of two: exact
    assert model[0].weight.equal(4 * weight)
    torch.testing.assert_close(model(x), before)
    with pytest.raises(ValueError, match="factor must be positive"):
        transfer_scale_(model[0], model[2], 0.0)
    with pytest.raises(ValueError, match="following has no weight"):
        transfer_scale_(model[0], model[1], 2.0)
