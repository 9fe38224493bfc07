"""Models that run, in one table: those that write while they do, to whatever it is, and others."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import flex_attention
from torch.nn.utils import parametrizations, spectral_norm
from torch.utils.checkpoint import checkpoint

LARGE = 20_000  # elements: more bytes than a copy is kept of unasked


class Writer(nn.Module):
    """Writes to itself at its turn. It has a tensor of every kind that it may write to."""

    def __init__(self, write: Callable[[Any, Tensor], object], large: bool = True) -> None:
        super().__init__()
        size = LARGE if large else 10
        self.write = write
        self.weight = nn.Parameter(torch.randn(16, 16))
        self.weight.grad = torch.randn(16, 16)
        self.register_buffer("state", torch.randn(size))
        self.register_buffer("counts", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.register_buffer("wave", torch.randn(size, dtype=torch.complex64))
        self.register_buffer("table", torch.randn(size // 10, 10).bfloat16())
        self.register_buffer("none", None)
        self.part, self.kind = nn.Identity(), "first"
        self.cache, self.empty = torch.randn(size), None
        self.listed, self.named = [torch.randn(size)], {"key": torch.randn(size)}
        self.generator = torch.Generator().manual_seed(5)
        self.once = self.register_forward_pre_hook(lambda module, args: module.once.remove())

    def forward(self, x: Tensor) -> Tensor:
        self.write(self, x)
        return x @ self.weight.detach()


def _set(name: str, value: Callable[[Any], Any]) -> Callable[[Any, Tensor], object]:
    return lambda m, x: setattr(m, name, value(m))


def _backward(m: Any, x: Tensor) -> None:
    with torch.enable_grad():
        (x.detach() @ m.weight).sum().backward()


def _hooks(m: Any, x: Tensor) -> None:
    m.register_forward_hook(lambda *args: None)
    m.register_forward_pre_hook(lambda *args: None, prepend=True)
    m.register_full_backward_hook(lambda *args: None)


def _inference(m: Any, x: Tensor) -> None:
    with torch.inference_mode():
        m.state.mul_(2)
        F.batch_norm(torch.randn(4, LARGE), m.state, m.cache, training=True)


def _swap(m: Any, x: Tensor) -> None:
    """As BigBird takes another attention where the input is short."""
    if m.kind == "first":
        m.part, m.kind = nn.Linear(16, 16), "second"
    assert type(m.part) is {"first": nn.Identity, "second": nn.Linear}[m.kind]


WRITES: dict[str, Callable[[Any, Tensor], object]] = {
    "in place": lambda m, x: m.state.add_(1),
    "integers": lambda m, x: m.counts.add_(1),
    "a slice": lambda m, x: m.state[3:9].fill_(x.mean()),
    "a column, then all": lambda m, x: (m.table[:, 3].zero_(), m.table.t().add_(1)),
    "an index": lambda m, x: m.state.index_put_((torch.tensor([3, 5]),), torch.tensor([1.0, 2.0])),
    "out=": lambda m, x: torch.mul(m.state, 2, out=m.state),
    "a list of tensors": lambda m, x: torch._foreach_add_([m.state, m.cache], 1.0),
    "through .data": lambda m, x: m.state.data.mul_(2),
    "through another dtype": lambda m, x: m.state.view(torch.int32).bitwise_not_(),
    "a conjugate": lambda m, x: m.wave.conj().imag.mul_(3),
    "in inference mode": _inference,
    "a copy": lambda m, x: m.state.copy_(m.cache),
    "random numbers": lambda m, x: m.state.normal_(),
    "reassigned": _set("state", lambda m: m.state + 1),
    "deleted": lambda m, x: m.__delattr__("state") if hasattr(m, "state") else None,
    "registered": lambda m, x: m.register_buffer("new", x.clone()),
    "given": _set("none", lambda m: torch.ones(3)),
    "resized": lambda m, x: m.state.data.resize_(3),
    "set": lambda m, x: m.state.set_(torch.ones(4)),
    "data assigned": _set("weight.data", lambda m: None),
    "an attribute": lambda m, x: m.cache.add_(1),
    "an attribute reassigned": _set("cache", lambda m: m.cache * 2),
    "an attribute given": _set("empty", lambda m: torch.ones(3)),
    "an attribute deleted": lambda m, x: m.__dict__.pop("cache", None),
    "an attribute made": _set("made", lambda m: torch.ones(3)),
    "in a list": lambda m, x: m.listed[0].neg_(),
    "a list that grows": lambda m, x: m.listed.append(x),
    "a dict": lambda m, x: m.named.update(other=x, key=x),
    "a parameter": lambda m, x: m.weight.mul_(1.5),
    "a parameter's data": lambda m, x: setattr(m.weight, "data", m.weight * 2),
    "a parameter registered": _set("extra", lambda m: nn.Parameter(torch.ones(2))),
    "a module made": _set("made", lambda m: nn.Linear(2, 2)),
    "a module swapped, and what says which": _swap,
    "a count": lambda m, x: setattr(m, "runs", getattr(m, "runs", 0) + 1),
    "gradients": _backward,
    "a gradient": lambda m, x: m.weight.grad.mul_(2),
    "no gradient": lambda m, x: setattr(m.weight, "grad", None),
    "requires_grad": lambda m, x: m.weight.requires_grad_(False),
    "a mode": lambda m, x: m.train(not m.training),
    "hooks": _hooks,
    "a generator of its own": lambda m, x: torch.randn(3, generator=m.generator),
    "generators": lambda m, x: (torch.randn(3), random.random(), numpy.random.random()),
}
WRITES["data assigned"] = lambda m, x: setattr(m.state, "data", torch.ones(7))


class Renormed(nn.Module):
    """Through the function, which no module tells of."""

    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.weight, self.bag = nn.Parameter(torch.randn(LARGE, 8)), bag
        self.after = nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        function = F.embedding_bag if self.bag else F.embedding
        return self.after(function(tokens, self.weight, max_norm=1.0))


def _sequential(*modules: nn.Module) -> nn.Module:
    return nn.Sequential(*modules)


def _lstm() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.after = nn.LSTM(16, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.after(self.lstm(x)[0])

    return Net()


def _attention(training: bool = True, **options: Any) -> nn.Module:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, **options)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).train(training)


class Within(nn.Module):
    """A large batch norm, run in one of the ways that torch has to run something."""

    def __init__(self, run: Callable[[Any], Any]) -> None:
        super().__init__()
        self.before, self.norm = nn.Linear(16, 4), nn.BatchNorm1d(LARGE)
        self.after, self.run = nn.Linear(16, 4), run(self.norm)
        self.register_buffer("sparse", torch.eye(50).to_sparse())
        with warnings.catch_warnings():  # that it is in beta state
            warnings.simplefilter("ignore")
            self.register_buffer("rows", torch.eye(50).to_sparse_csr())

    def forward(self, x: Tensor) -> Tensor:
        self.run(self.before(x).repeat(1, LARGE // 4))
        self.sparse.mul_(2)
        self.rows.values().add_(1)
        return self.after(x)


def _checkpointed(norm: nn.Module) -> Callable[[Tensor], Tensor]:
    return lambda x: checkpoint(norm, x, use_reentrant=False)


class Flex(nn.Module):
    """Attention that torch compiles whatever one does."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm = nn.Linear(16, 16), nn.BatchNorm1d(5)

    def forward(self, x: Tensor) -> Tensor:
        q = self.norm(self.project(x))[:, None]
        return flex_attention(q, q, q)


def _tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 16), nn.Linear(16, 50, bias=False))
    model[2].weight = model[0].weight
    return model


def _frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
    model[0].requires_grad_(False)
    return model


def _x(*shape: int) -> Callable[[], Tensor]:
    return lambda: torch.randn(shape, generator=torch.Generator().manual_seed(1))


def _tokens(high: int = 50) -> Callable[[], Tensor]:
    return lambda: torch.randint(high, (6, 7), generator=torch.Generator().manual_seed(1))


VECTORS = _x(32, 16)

Model = tuple[Callable[[], nn.Module], Callable[[], Tensor]]
"""What builds it, and what its input is."""

PLAIN: dict[str, Model] = {
    "a large batch norm": (
        lambda: _sequential(nn.Linear(16, LARGE), nn.BatchNorm1d(LARGE), nn.Linear(LARGE, 4)),
        VECTORS,
    ),
    "a batch norm, averaging": (
        lambda: _sequential(nn.Linear(16, 8), nn.BatchNorm1d(8, momentum=None), nn.Linear(8, 4)),
        VECTORS,
    ),
    "a batch norm in eval": (
        lambda: _sequential(nn.Linear(16, LARGE), nn.BatchNorm1d(LARGE)).eval(),
        VECTORS,
    ),
    "instance norm": (
        lambda: _sequential(
            nn.Conv1d(3, 5000, 3), nn.InstanceNorm1d(5000, track_running_stats=True)
        ),
        _x(4, 3, 9),
    ),
    "convolutions": (
        lambda: _sequential(
            nn.Conv2d(3, 8, 3),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Dropout(0.3),
            nn.ConvTranspose2d(8, 4, 2),
            nn.Flatten(),
            nn.Linear(196, 5),
        ),
        _x(4, 3, 8, 8),
    ),
    "embedding, renormalised": (
        lambda: _sequential(nn.Embedding(LARGE, 8, max_norm=1.0), nn.Linear(8, 8)),
        _tokens(LARGE),
    ),
    "embedding bag, renormalised": (
        lambda: _sequential(nn.EmbeddingBag(LARGE, 8, max_norm=1.0), nn.Linear(8, 8)),
        _tokens(LARGE),
    ),
    "embedding function, renormalised": (lambda: Renormed(False), _tokens(LARGE)),
    "embedding bag function, renormalised": (lambda: Renormed(True), _tokens(LARGE)),
    "spectral norm": (
        lambda: _sequential(spectral_norm(nn.Linear(16, 16)), nn.Linear(16, 4)),
        VECTORS,
    ),
    "spectral norm, parametrised": (
        lambda: _sequential(parametrizations.spectral_norm(nn.Linear(16, 16)), nn.Linear(16, 4)),
        VECTORS,
    ),
    "weight norm": (
        lambda: _sequential(parametrizations.weight_norm(nn.Linear(16, 16)), nn.Linear(16, 4)),
        VECTORS,
    ),
    "LSTM": (_lstm, _x(5, 4, 16)),
    "attention": (_attention, _x(4, 5, 16)),
    "attention in eval": (lambda: _attention(False, dropout=0.0), _x(4, 5, 16)),
    "tied": (_tied, _tokens()),
    "checkpointed": (lambda: Within(_checkpointed), VECTORS),
    "frozen": (_frozen, VECTORS),
}
WRITERS: dict[str, Model] = {
    f"{name}, {'large' if large else 'small'}": (
        lambda write=write, large=large: _sequential(
            nn.Linear(16, 16), Writer(write, large), nn.Linear(16, 4)
        ),
        VECTORS,
    )
    for large in (True, False)
    for name, write in WRITES.items()
    if large or write is not _inference
}
MODELS = {**PLAIN, **WRITERS}
COMPILED: dict[str, Model] = {
    "scripted": (lambda: Within(torch.jit.script), VECTORS),
    "compiled": (lambda: Within(lambda m: torch.compile(m, backend="aot_eager")), VECTORS),
    "flex attention": (Flex, _x(4, 5, 16)),
}
LAZY: dict[str, Model] = {
    "lazy": (
        lambda: _sequential(
            nn.LazyConv2d(8, 3),
            nn.LazyBatchNorm2d(),
            nn.Flatten(),
            nn.LazyLinear(8),
            nn.ReLU(),
            nn.Linear(8, 4),
        ),
        _x(4, 3, 8, 8),
    )
}


def build(model: Model) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    random.seed(0)
    numpy.random.seed(0)
    return model[0](), model[1]()


def _bits(value: Any) -> Any:
    if isinstance(value, nn.parameter.UninitializedTensorMixin):
        return type(value)
    if isinstance(value, Tensor) and value.layout is torch.sparse_coo:
        return _bits(value._indices()), _bits(value._values())
    if isinstance(value, Tensor) and value.layout is torch.sparse_csr:
        return _bits(value.crow_indices()), _bits(value.col_indices()), _bits(value.values())
    if isinstance(value, Tensor):
        memory = torch.empty(0, dtype=torch.uint8).set_(value.untyped_storage())
        place = value.storage_offset(), value.shape, value.stride()
        return value.dtype, value.requires_grad, place, memory.numpy().tobytes(), _bits(value.grad)
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    return None


def _parts(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    """What is compared of an attribute: of what holds others each, with the order."""
    yield name, (id(value), _bits(value))
    if isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for place, (key, part) in enumerate(items):
            yield from _parts(f"{name}[{place}: {key!r}]", part)


def _plain(part: Any) -> Any:
    return part.tobytes() if isinstance(part, numpy.ndarray) else part


def everything(model: nn.Module) -> dict[str, Any]:
    """Every byte of a model and of the random generators, and which objects it consists of."""
    found: dict[str, Any] = {
        "generator": torch.get_rng_state().numpy().tobytes(),
        "random": random.getstate(),
        "numpy": [_plain(part) for part in numpy.random.get_state()],
    }
    for name, module in model.named_modules():
        found[f"{name} is"] = type(module)
        for key, value in vars(module).items():
            found.update(_parts(f"{name}.{key}", value))
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Names of what is not the same, or where no such thing was or is."""
    names = [name for name in after if name not in before]
    return names + [name for name in before if name not in after or after[name] != before[name]]
