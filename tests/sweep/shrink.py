"""Real constructors, made small: a few layers, narrow widths, as they are otherwise.

What a number is, its name tells: of a signature's argument or of a configuration's field. Widths are
divided by one factor, so that what divides another still does. Which factor a model bears, only trying
tells: :func:`candidates` begins with the smallest.
"""

from __future__ import annotations

import contextlib
import copy
import inspect
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Build = Callable[[], nn.Module]

FEW = 2  # layers, blocks and repetitions
HEADS = 4
WORDS = 128  # of a vocabulary
SECONDS = 8.0  # of trying sizes
MOST = 6_000_000  # parameters of a model that is tried

_LAYERS = re.compile(r"(^|_)n?(layers?|blocks?|depths?|repeats?|resnets)(_|$)|^num_stacks$")
_NOT_LAYERS = re.compile(
    r"norm|type|drop|scale|index|indices|ids?$|out|decay|every|interval|period|offset|freq|start|first"
)
_WIDTH = re.compile(
    r"(^|_)(\w*size|\w*dims?|width|\w*channels?\w*|planes|hidden|embed|n_embd|n_inner|ff|\w*ffn\w*|"
    r"\w*rank|d_model|d_kv|features|filters|units|inner|nf|ch|model_channels|\w*widths?)(_|$)"
)
_NOT_WIDTH = re.compile(
    r"image|img|patch|kernel|chunk|window|stride|context|batch|block_size|pool|beam|position|token|"
    r"sampl|vocab|grid|input_size|crop|num_|tile|ratio|factor|mult|drop|scale|in_channels|out_channels|"
    r"seq|codebook_size|bins|axes|cache|local|bucket|memory|rope|spatial|shift|query|step|frame|size_list"
)
_WORDS = re.compile(
    r"vocab(ulary)?(_size)?s?$|^num_embeddings$|^n_?words$|^num_tokens$|codebook_size$"
)
_TOKEN = re.compile(r"token_?(id|index|idx)|_idx$|(pad|bos|eos|mask|blank)_id$")
_HEADS = re.compile(r"(^|_)n?heads?$")
_PLACES = re.compile(
    r"max_(\w*_)?(position|len|seq|source|target)|n_positions|^n_ctx$|max_seq|seq_len"
)
_EXPERTS = re.compile(r"experts?$")
_NOT_EXPERTS = re.compile(r"per_tok|shared|top|active|zero")


@dataclass(frozen=True)
class Size:
    """How small."""

    factor: int
    few_heads: bool = True
    few_layers: bool = True


def sizes() -> Iterator[Size]:
    """The smallest first."""
    for few_layers in (True, False):
        for factor in (32, 16, 8, 4, 2, 1):
            for few_heads in (True, False):
                yield Size(factor, few_heads, few_layers)


def shrunk(name: str, value: Any, size: Size) -> Any:
    """A number or list of numbers, of what the name says that it is.

    >>> shrunk("hidden_size", 768, Size(16)), shrunk("num_hidden_layers", 12, Size(16))
    (48, 2)
    >>> shrunk("depths", (2, 2, 6, 2), Size(16)), shrunk("num_attention_heads", 12, Size(16))
    ((2, 2, 2, 2), 4)
    """
    if isinstance(value, (list, tuple)) and all(isinstance(v, (int, list, tuple)) for v in value):
        return type(value)(shrunk(name, v, size) for v in value)
    if isinstance(value, float) and re.search("width_(coef|mult)|multiplier$", name):
        return value / size.factor
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return value
    if _WORDS.search(name):
        return min(value, WORDS)
    if _TOKEN.search(name):
        return value if value < WORDS else WORDS - 1 - value % 7
    if _PLACES.search(name):
        return min(value, 128)
    if _EXPERTS.search(name) and not _NOT_EXPERTS.search(name):
        return min(value, 8)
    if _LAYERS.search(name) and not _NOT_LAYERS.search(name):
        return min(value, FEW) if size.few_layers else value
    if _HEADS.search(name):
        return min(value, HEADS) if size.few_heads else value
    if _WIDTH.search(name) and not _NOT_WIDTH.search(name) and value >= 16:
        return value // size.factor if value % size.factor == 0 else value
    return value


# --- configurations of transformers -------------------------------------------------------------------


def config_of(config: Any, size: Size) -> Any:
    """A configuration like the one given, with those that are in it, made small."""
    import dataclasses

    from transformers import PretrainedConfig

    kind = type(config)
    theirs = {field.name for field in dataclasses.fields(PretrainedConfig)}
    try:
        plain = kind()
    except Exception:
        plain = None
    arguments = {}
    values = _values_of(config, [f.name for f in dataclasses.fields(kind) if f.init])
    layers = {v for name, v in values.items() if isinstance(v, int) and shrunk(name, v, size) < v}
    for field in dataclasses.fields(kind):
        name = field.name
        if name in theirs or name not in values:
            continue
        value = list(values[name]) if isinstance(values[name], tuple) else values[name]
        if isinstance(value, PretrainedConfig):
            arguments[name] = config_of(value, size)
            continue
        if name == "use_pretrained_backbone":
            value = False
        small = shrunk(name, value, size)
        if isinstance(value, list) and len(value) in layers and size.few_layers:
            small = small[:FEW]  # something for each layer
        usual = _values_of(plain, [name]).get(name)
        # What the configuration works out itself, as each layer's type, it shall work out again.
        if field.default is None and value == usual:
            continue
        if small != usual:
            arguments[name] = small
    return kind(**arguments)


def _values_of(config: Any, names: list[str]) -> dict[str, Any]:
    found = {}
    for name in names:
        with contextlib.suppress(Exception):  # what differs from layer to layer has no value
            found[name] = getattr(config, name)
    return found


# --- any signature ------------------------------------------------------------------------------------

GIVEN: dict[str, Any] = {
    "in_channels": 4,
    "out_channels": 4,
    "num_classes": 3,
    "hidden_channels": 8,
    "num_layers": 2,
    "in_features": 8,
    "out_features": 8,
    "input_size": 8,
    "hidden_size": 8,
    "kernel_size": 3,
    "embed_dim": 8,
    "num_heads": 2,
    "num_features": 8,
    "num_channels": 8,
    "num_embeddings": 12,
    "embedding_dim": 8,
    "normalized_shape": 8,
    "d_model": 8,
    "nhead": 2,
    "dim_feedforward": 16,
    "num_groups": 2,
    "edge_dim": 4,
    "num_nodes": 5,
    "num_relations": 3,
    "heads": 2,
    "dim": 32,
    "depth": 2,
    "image_size": 32,
    "patch_size": 8,
    "mlp_dim": 32,
    "channels": 3,
    "dim_head": 8,
    "spatial_dims": 2,
    "img_size": (32, 32),
    "max_seq_len": 16,
    "num_tokens": WORDS,
    "K": 3,
    "alpha": 0.1,
    "dim_in": 8,
    "dim_out": 8,
    "ndim": 2,
    "seq_len": 32,
    "image_patch_size": 8,
    "freq_patch_size": 8,
    "frames": 8,
    "frame_patch_size": 4,
    "max_frames": 8,
    "num_residual_streams": 2,
    "window_size": 4,
    "reduction_factor": 2,
    "mlp_mult": 2,
    "cls_depth": 2,
    "num_types": 2,
    "groups": 2,
    "k": 2,
    "in_planes": 8,
    "planes": 8,
    "sm_dim": 16,
    "lg_dim": 32,
    "dims": [16, 24, 32],
    "num_language_layers": 2,
    "num_vision_layers": 2,
    "num_mixed_layers": 2,
    "fn": nn.Identity(),
    "net": nn.Linear(8, 8),
}


def signature_of(function: Callable[..., Any], size: Size, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments with which a function is called: its own, made small, and what it must be given.

    Raises:
        TypeError: an argument without a default of which no name above says what it may be.
    """
    arguments = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or name in given:
            continue
        if parameter.default is not parameter.empty:
            small = shrunk(name, parameter.default, size)
            if small != parameter.default:
                arguments[name] = small
        elif name in GIVEN:
            arguments[name] = GIVEN[name]
        else:
            raise TypeError(f"the argument {name!r} has no default, and nobody says what it may be")
    return {**arguments, **given}


# --- which size ---------------------------------------------------------------------------------------


class Unbuildable(Exception):
    """No size of a model can be built here: why."""


class NoModel(Exception):
    """What was asked for is a part of models, and none by itself."""


def smallest(made: Callable[[Size], Build]) -> Build:
    """The first size of a model that the constructor takes, as a function that builds it.

    Raises:
        Unbuildable: none.
    """
    why: Exception | None = None
    seen = []
    started = time.process_time()
    for size in sizes():
        if time.process_time() - started > SECONDS:
            break
        try:
            build = made(size)
            on_meta = _numel_on_meta(build)
            if on_meta is None:
                torch.manual_seed(0)
                build()
            elif on_meta > MOST:
                seen.append(on_meta)
                continue
        except Exception as error:  # whatever a constructor says of arguments that it does not take
            why = why or error
            continue
        return build
    if why is not None:
        raise Unbuildable(f"{type(why).__name__}: {why}") from why
    raise Unbuildable(f"{min(seen) / 1e6:.0f} million parameters at the least")


def _numel_on_meta(build: Build) -> int | None:
    try:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in build().parameters())
    except Exception:  # not every constructor runs there
        return None


def by_call(function: Callable[[], nn.Module]) -> Build:
    """The smallest model of the class, and with the arguments, that a function calls.

    It is what the function makes, if the class bears no smaller numbers.
    """
    kind, arguments = _called(function)

    def made(size: Size) -> Build:
        small = {name: shrunk(name, value, size) for name, value in arguments.items()}
        if size == last or all(small[name] is arguments[name] for name in small):
            return function
        return lambda: kind(**copy.deepcopy(small))

    *_, last = sizes()
    return smallest(made)


class _Seen(Exception):
    """The call that was waited for has come."""


def _called(function: Callable[[], nn.Module]) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of what a function makes, and what that was called with."""
    with torch.device("meta"):
        kind = type(function())
        original, calls = kind.__init__, []

        def watched(self: nn.Module, *args: Any, **kwargs: Any) -> None:
            calls.append(inspect.signature(original).bind(self, *args, **kwargs))
            raise _Seen

        kind.__init__ = watched  # type: ignore[method-assign]
        try:
            with contextlib.suppress(_Seen):
                function()
        finally:
            kind.__init__ = original  # type: ignore[method-assign]
    call = calls[0]
    call.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in list(call.arguments.items())[1:]:
        kind_of_it = call.signature.parameters[name].kind
        if kind_of_it is inspect.Parameter.VAR_KEYWORD:
            arguments |= value
        elif kind_of_it is not inspect.Parameter.VAR_POSITIONAL:
            arguments[name] = value
    return kind, arguments


def by_signature(function: Callable[..., nn.Module], /, **given: Any) -> Build:
    """The smallest model that a function makes from what its signature says."""

    def made(size: Size) -> Build:
        arguments = signature_of(function, size, given)
        return lambda: function(**copy.deepcopy(arguments))

    return smallest(made)
