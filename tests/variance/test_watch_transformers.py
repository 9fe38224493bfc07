"""What a watch measures of transformers: the residual stream, and query, key and value of attention."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.attention.bias import causal_lower_right
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint
from watching import assert_moments, hooks, mlp

from fastinit.variance.watch.watch import Watch, watch

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "vocab_size": 50}
GPT2 = {"n_embd": 32, "n_head": 4, "n_layer": 3, "vocab_size": 50, "n_positions": 16}


def transformer(kind: str) -> tuple[nn.Module, Any]:
    """A small model and tokens."""
    transformers = pytest.importorskip("transformers")
    name, given = {
        "GPT-2": ("GPT2", GPT2 | {"bos_token_id": 1, "eos_token_id": 1}),
        "Llama": ("Llama", SIZES | {"num_hidden_layers": 3, "num_key_value_heads": 2}),
        "Qwen3, with norms of q and k": (
            "Qwen3",
            SIZES | {"num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 8},
        ),
        "BERT": ("Bert", SIZES | {"num_hidden_layers": 3}),
    }[kind]
    config = getattr(transformers, f"{name}Config")(**given)
    torch.manual_seed(0)
    return getattr(transformers, f"{name}Model")(config).eval(), torch.randint(50, (2, 7))


class Listens(TorchFunctionMode):
    """What is given to attention."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: list[dict[str, Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.heard.append({**dict(zip(("query", "key", "value"), args)), **(kwargs or {})})
        return func(*args, **(kwargs or {}))


KINDS = {
    "GPT-2": ("h.{}", "h.{}.attn"),
    "Llama": ("layers.{}", "layers.{}.self_attn"),
    "Qwen3, with norms of q and k": ("layers.{}", "layers.{}.self_attn"),
    "BERT": ("encoder.layer.{}", "encoder.layer.{}.attention.self"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_transformers(kind: str) -> None:
    model, tokens = transformer(kind)
    block, attention = KINDS[kind]
    with Listens() as listens:
        plain = model(tokens, output_hidden_states=True)
    before = hooks(model)
    with watch(model, residual=True, attention=True, gradients=True) as w:
        out = model(tokens)
        out[0].square().mean().backward()
    assert hooks(model) == before
    assert torch.equal(out[0], plain[0])
    by_name = {layer.name: layer for layer in w.layers}
    assert w.missing == {}
    hidden = plain.hidden_states[1:]  # transformers' own: behind a last norm, if there is one
    for i in range(3):
        stream = by_name.pop(block.format(i))
        if i < 2 or kind == "BERT":
            assert_moments(stream.forward, hidden[i])
        assert stream.backward is not None
        for part in ("query", "key", "value"):
            given = by_name.pop(f"{attention.format(i)}.sdpa.{part}")
            assert_moments(given.forward, listens.heard[i][part])
            assert given.backward is not None
            assert (given.calls, given.weight, given.note) == (1, None, "")
    with watch(model) as without:
        model(tokens)
    assert list(by_name) == [layer.name for layer in without.layers]
    assert w.product == pytest.approx(without.product)


def test_torchs_own_encoder() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 3), torch.randn(2, 5, 16)
    with watch(model, residual=True, attention=True) as w:
        model(x)
    names = [layer.name for layer in w.layers]
    for i in range(3):
        assert f"layers.{i}" in names
        assert {f"layers.{i}.self_attn.{p}_proj" for p in "qkv"} <= set(names)
    h = x
    model.eval()
    with watch(model, residual=True) as w:
        model(x)
    streams = [layer for layer in w.layers if layer.name.count(".") == 1]
    for layer, block in zip(streams, model.layers):
        h = block(h)
        assert layer.forward.std == pytest.approx(h.std().item(), rel=1e-4)  # by another path


class Attention(nn.Module):
    """Calls attention by names, as often as it is told, with heads that are one in memory."""

    def __init__(self, times: int = 1) -> None:
        super().__init__()
        self.qkv, self.times = nn.Linear(8, 24), times

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(self.times):
            q, k, v = self.qkv(x).unflatten(-1, (3, 1, 8)).permute(2, 0, 3, 1, 4)
            k = k.expand(-1, 4, -1, -1)
            bias = causal_lower_right(x.shape[1], x.shape[1])
            q = q.expand(-1, 4, -1, -1).contiguous()
            x = x + F.scaled_dot_product_attention(q, k, value=v.expand_as(k), attn_mask=bias)[:, 0]
        return x


class Block(nn.Module):
    def __init__(self, again: bool = False) -> None:
        super().__init__()
        self.attention, self.out, self.again = Attention(2), nn.Linear(8, 8), again

    def forward(self, x: Tensor) -> Tensor:
        run = self.attention
        x = checkpoint(run, x, use_reentrant=False) if self.again else run(x)
        return x + self.out(x)


class Mixture(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x


def net(again: bool = False) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Sequential(Block(again), Block(again)), nn.ReLU())


def seen(w: Watch) -> dict[str, tuple[int, float, float | None]]:
    return {
        layer.name: (layer.calls, layer.forward.std, layer.backward and layer.backward.std)
        for layer in w.layers
    }


@pytest.mark.parametrize("again", [False, True])
def test_a_model_of_ones_own(again: bool) -> None:
    model, x = net(again), torch.randn(2, 5, 8)
    with Listens() as listens:
        wanted = model(x)
    with watch(model, gradients=True, residual=True, attention=True) as w:
        out = model(x)
        out.square().mean().backward()
    assert torch.equal(out, wanted)
    found = seen(w)
    assert [n for n in found if n.count(".") == 1] == ["1.0", "1.1"]
    for i in range(2):
        name = f"1.{i}.attention.sdpa"
        heard = listens.heard[2 * i : 2 * i + 2]
        for part in ("query", "key", "value"):
            layer = next(layer for layer in w.layers if layer.name == f"{name}.{part}")
            assert layer.calls == 2
            assert_moments(layer.forward, *(one[part] for one in heard))
            assert layer.backward is not None


def test_an_attention_that_fails_leaves_nothing() -> None:
    model, x = net(), torch.randn(2, 5, 8)
    before, modes = hooks(model), torch._C._len_torch_function_stack()
    for error in (RuntimeError, KeyboardInterrupt):

        def fail(*args: object, error: type[BaseException] = error) -> None:
            raise error

        handle = model[1][1].out.register_forward_hook(fail)
        with pytest.raises(error), watch(model, attention=True) as w:
            model(x)
        assert torch._C._len_torch_function_stack() == modes
        handle.remove()
        assert hooks(model) == before
        assert "1.1.attention.sdpa.key" in seen(w)


def test_steps_and_users_own_modes() -> None:
    """A mode that begins within the block and ends in it may lie over a step's end."""
    model, told = net(), []
    modes = torch._C._len_torch_function_stack()
    with watch(model, every=2, to=told.append, residual=True, attention=True) as w:
        for _ in range(3):
            with torch.device("cpu"):
                model(torch.randn(2, 5, 8))
                w.step()
        assert torch._C._len_torch_function_stack() == modes
    assert [measured.step for measured in told] == [0, 2]
    for measured in told:
        assert {"1.0", "1.0.attention.sdpa.query"} <= {layer.name for layer in measured.layers}


def test_copies_have_no_hooks() -> None:
    model = mlp()
    plain = hooks(copy.deepcopy(model))
    with watch(model, attention=True):
        assert hooks(copy.deepcopy(model)) == plain
        assert hooks(pickle.loads(pickle.dumps(model))) == plain


def test_what_is_not_there_is_said() -> None:
    model = mlp()
    with pytest.raises(ValueError, match=r"residual=True is of models with blocks.*Sequential"):
        watch(model, residual=True)
    with watch(model, attention=True) as w:
        model(torch.randn(4, 32))
    assert w.missing["scaled_dot_product_attention"].startswith("no module called it")
    compiled = nn.Sequential(nn.Linear(4, 4), torch.compile(mlp(), backend="eager"))
    with pytest.raises(ValueError, match="attention=True sees nothing in 1: compiled"):
        watch(compiled, attention=True)


def parametrised(block: nn.Module) -> nn.Module:
    block.scale = nn.Parameter(torch.ones(()))
    return parametrize.register_parametrization(block, "scale", nn.Identity())


WRAPPED: list[Callable[[nn.Module], nn.Module]] = [
    partial(torch.compile, backend="eager"),
    checkpoint_wrapper,
    parametrised,
]


class Layers(nn.Module):
    """Holds modules as a ModuleList does, and is none."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        for place, layer in enumerate(layers):
            self.add_module(str(place), layer)

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._modules.values())


class Pair(nn.Module):
    """Two of a class, beside each other."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = Block(), Block()


CONTAINERS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "experts are within blocks": (
        lambda: nn.ModuleList(Mixture() for _ in range(2)),
        ["0", "1"],
    ),
    "stages": (
        lambda: nn.ModuleDict({"stages": nn.ModuleList(mlp(i) for i in (1, 2)), "head": mlp(1)}),
        ["stages.0", "stages.1"],
    ),
    "two kinds take turns": (
        lambda: nn.ModuleDict({"layers": nn.ModuleList([Block(), mlp(1), Block()])}),
        ["layers.0", "layers.1", "layers.2"],
    ),
    "wrapped and parametrised": (
        lambda: nn.ModuleList(wrap(Block()) for wrap in WRAPPED for _ in "ab"),
        [str(place) for place in range(2 * len(WRAPPED))],
    ),
    "a container of one's own": (lambda: Layers(Block(), mlp(1), Block()), ["0", "1", "2"]),
    "no container": (
        lambda: nn.ModuleDict({"pair": Pair(), "layers": nn.ModuleList([Block(), Block()])}),
        ["layers.0", "layers.1"],
    ),
    "an encoder and a decoder": (
        lambda: nn.ModuleDict({n: nn.ModuleList([Block(), Block()]) for n in ("en", "de")}),
        ["en.0", "en.1", "de.0", "de.1"],
    ),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_blocks_are_what_the_outermost_container_repeats(kind: str) -> None:
    build, names = CONTAINERS[kind]
    model = build()
    layers = {target.name for target in watch(model)._targets}
    assert [t.name for t in watch(model, residual=True)._targets if t.name not in layers] == names
    chosen = watch(model, layers=names, residual=True)._targets
    assert [target.name for target in chosen] == names
