"""State space models and other recurrences: Mamba, RWKV, gated delta nets, and hybrids with attention.

Their decays are spread over scales, in ramps or drawn log-uniformly, and are stored as what the layer's
forward makes decays of: a logarithm, or the inverse of softplus.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from fastinit.base import number
from fastinit.fills import fans
from fastinit.plan.fill import Fill
from fastinit.plan.ruled import Rule
from fastinit.recipes.fills import ONE, ZERO, normal, within
from fastinit.recipes.pretrained import plain, std_of
from fastinit.recipes.roles import own_name, role
from fastinit.recipes.rules import count_of, needs, number_of, setting

_LOG_OF_RAMP = Fill.arange(1.0).then("log")
"""A_log of S4D-Real: A = -1, -2, ... along the states (Gu et al. 2022, arXiv 2206.11893, section 4)."""


@needs("*dt_proj.bias")
def mamba(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """Mamba: A_log = log(1, 2, ...) in each row, D 1, time steps log-uniform.

    ``dt_proj`` has a weight uniform within ``time_step_rank``^-1/2 times ``time_step_scale`` (with the
    scheme "constant" just that), and as its bias the inverse softplus of a log-uniform time step in
    [``time_step_min``, ``time_step_max``), which is ``time_step_floor`` at least. The convolution and
    ``out_proj`` are uniform within fan_in^-1/2 (``out_proj`` less by sqrt(layers) with
    ``rescale_prenorm_residual``), the convolution's bias is 0; the rest is as of
    :func:`fastinit.recipes.llama`. Falcon Mamba is alike.

    Source: Gu & Dao 2023, arXiv 2312.00752, section 3.6; transformers 5,
    ``MambaPreTrainedModel._init_weights`` (after state-spaces/mamba, ``modules/mamba_simple.py``, which
    leaves other Linear layers as torch makes them).

    Args:
        config: what is named above; ``initializer_range``; ``num_hidden_layers`` if it rescales.
    """
    own = _of_mixer(name, module)
    if own in ("A_log", "D"):
        return ONE if own == "D" else _LOG_OF_RAMP
    part = role(name, module, shape)
    if part is not None and _is_linear(name, module, "dt_proj"):
        return _dt_bias(config) if part == "bias" else _dt_weight(config)
    if part == "weight" and _is_linear(name, module, "out_proj") and _rescales(config):
        return _out(shape, config)
    if part == "weight" and (_is_linear(name, module, "out_proj") or isinstance(module, nn.Conv1d)):
        return within(fans.fans_of(shape)[0] ** -0.5)  # as torch makes it
    return plain(name, module, shape, std_of(config))


@needs("*dt_bias")
def mamba2(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """Mamba-2: A_log = log(1, 2, ...) by head, D 1; ``dt_bias`` is as the bias of Mamba's ``dt_proj``.

    The rest is as of :func:`mamba`. (state-spaces/mamba draws A uniformly in [1, 16): for that, take
    ``by_name({"*A_log": Fill.uniform(1.0, 16.0).then("log")})`` first.)

    Source: Dao & Gu 2024, arXiv 2405.21060; transformers 5, ``Mamba2PreTrainedModel._init_weights``.

    Args:
        config: as of :func:`mamba`, but for ``dt_proj``.
    """
    if _of_mixer(name, module) == "dt_bias":
        return _dt_bias(config)
    return mamba(name, module, shape, config)


@needs("*time_decay")
def rwkv(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """RWKV-4: ramps for decays and mixing, by layer; orthogonal matrices.

    With l of L layers, r = l / (L - 1) and s = 1 - l / L: ``time_decay`` is
    -5 + 8 (h / (H - 1))^(0.7 + 1.3 r) for channel h of H, ``time_mix_key`` (i / d)^s,
    ``time_mix_value`` the same plus 0.3 r, ``time_mix_receptance`` (i / d)^(s / 2) in attention and
    (i / d)^s in the feed-forward part; ``time_first`` 1. Matrices are orthogonal with gain
    sqrt(out / in) where that is above 1, half of it for the head; embeddings 1e-4 sqrt(max(shape)).

    Source: transformers 5, ``RwkvPreTrainedModel._init_weights``, after BlinkDL/RWKV-LM's RWKV-4, whose
    ``time_first`` is log(0.3) plus a zigzag of 0.5 (Peng et al. 2023, arXiv 2305.13048, "Parameter
    initializations").

    Args:
        config: ``num_hidden_layers``, ``vocab_size`` and ``hidden_size``.
    """
    own = own_name(name)
    if own.startswith("time_"):
        index = re.search(r"(?:^|\.)(\d+)\.", name)
        if index is None:
            return None
        return _of_time(own, int(index[1]), shape, config, hasattr(module, "time_decay"))
    is_weight = role(name, module, shape) == "weight"
    if isinstance(module, nn.Linear) and is_weight:
        gain = max(1.0, math.sqrt(shape[0] / shape[1]))
        head = tuple(shape) == (count_of(config, "vocab_size"), count_of(config, "hidden_size"))
        return Fill.orthogonal(0.5 * gain if head else gain)
    if isinstance(module, nn.Embedding) and is_weight:
        return Fill.orthogonal(1e-4 * math.sqrt(max(shape)))
    return plain(name, module, shape, std_of(config))


def _of_time(own: str, layer: int, shape: torch.Size, config: Any, attention: bool) -> Fill | None:
    layers, size = count_of(config, "num_hidden_layers"), shape[-1]
    rising, falling = layer / max(layers - 1, 1), 1.0 - layer / layers
    if own == "time_first":
        return ONE
    if own == "time_decay":
        channel = Fill.arange().then("div", max(size - 1, 1))
        return channel.then("pow", 0.7 + 1.3 * rising).then("mul", 8.0).then("add", -5.0)
    place = Fill.arange().then("div", size)
    if own == "time_mix_key":
        return place.then("pow", falling)
    if own == "time_mix_value":
        return place.then("pow", falling).then("add", 0.3 * rising)
    if own == "time_mix_receptance":
        return place.then("pow", 0.5 * falling if attention else falling)
    return None


def _delta_net(decay: Callable[[Any], Fill], dt: Callable[[Any], Fill], centred: bool) -> Rule:
    """A gated delta net between what PreTrainedModel._init_weights does.

    Args:
        decay: of a config: the Fill of ``A_log``.
        dt: of a config: the Fill of ``dt_bias``.
        centred: norms multiply by 1 + weight, but for those with a gate.
    """

    def rule(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        own = _of_mixer(name, module)
        if own in ("A_log", "dt_bias"):
            return decay(config) if own == "A_log" else dt(config)
        if centred and type(module).__name__.endswith("RMSNorm") and own_name(name) == "weight":
            return ZERO
        return _experts(name, module, config) or plain(name, module, shape, std_of(config))

    return needs("*A_log")(rule)


def _log_uniform(low: float, high: float) -> Fill:
    return Fill.uniform(low, high).then("log")


_qwen3_next = _delta_net(lambda config: _log_uniform(0.01, 16.0), lambda config: ONE, centred=True)


@needs("*A_log")
def gated_delta_net(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    """Gated delta nets, as Qwen3-Next has them: A_log log-uniform in [0.01, 16), ``dt_bias`` 1.

    Norms are 0, since they multiply by 1 + weight, those with a gate 1; experts and routers are
    normal(0, ``initializer_range``), the rest is as of :func:`fastinit.recipes.llama`. Kimi Linear and
    OLMo Hybrid have another range, and a ``dt_bias`` as Mamba-2's:
    :func:`fastinit.recipes.transformers_default` has theirs.

    Source: Yang et al. 2024, arXiv 2412.06464; transformers 5,
    ``Qwen3NextPreTrainedModel._init_weights``.

    Args:
        config: ``initializer_range``, by default 0.02.
    """
    return _qwen3_next(name, module, shape, config)


def _hybrid(fill_of: Callable[[str, Any], Fill | None]) -> Rule:
    """Attention, and mixers of Mamba whose Fills are made of (own name, config)."""

    def rule(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        own = _of_mixer(name, module)
        if own is not None and (fill := fill_of(own, config)) is not None:
            return fill
        if own in ("A_log", "D"):
            return ONE if own == "D" else _LOG_OF_RAMP
        return _experts(name, module, config) or plain(name, module, shape, std_of(config))

    return needs("*A_log")(rule)


def _zamba(own: str, config: Any) -> Fill | None:
    if own == "dt_proj_weight":
        return within(count_of(config, "mamba_dt_rank") ** -0.5)
    return {"x_proj_weight": normal(std_of(config)), "dt_proj_bias": _dt_bias(config)}.get(own)


def _nemotron(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
    is_weight = role(name, module, shape) == "weight"
    if is_weight and _is_linear(name, module, "out_proj") and _rescales(config):
        return _out(shape, config)
    if _of_mixer(name, module) is not None:
        return mamba2(name, module, shape, config)
    return _experts(name, module, config) or plain(name, module, shape, std_of(config))


_ones = _hybrid(lambda own, config: ONE if own == "dt_bias" else None)
_zamba2 = _hybrid(lambda own, config: _dt_bias(config) if own == "dt_bias" else None)

_kimi = _delta_net(
    lambda config: _log_uniform(1.0, 16.0),
    lambda config: _inverse_softplus(1e-3, 0.1, 1e-4),
    centred=False,
)
_olmo = _delta_net(
    lambda config: _log_uniform(
        number_of(config, "linear_a_log_min"), number_of(config, "linear_a_log_max")
    ),
    lambda config: _dt_bias_of(
        "linear_dt_min", "linear_dt_max", "linear_dt_init_floor", config=config
    ),
    centred=False,
)
_lara = _delta_net(lambda config: _log_uniform(1.0, 16.0), lambda config: ONE, centred=False)

FAMILIES: dict[str, Rule] = {
    "bamba": _ones,
    "falcon_h1": _ones,
    "falcon_mamba": mamba,
    "granitemoehybrid": _ones,
    "jamba": _hybrid(lambda own, config: None),
    "kimi_linear": _kimi,
    "lara_mini": _lara,
    "mamba": mamba,
    "mamba2": mamba2,
    "nemotron_h": _nemotron,
    "olmo_hybrid": _olmo,
    "qwen3_5_text": gated_delta_net,
    "qwen3_next": gated_delta_net,
    "rwkv": rwkv,
    "zamba": _hybrid(_zamba),
    "zamba2": _zamba2,
}
"""The rule of each ``model_type`` of transformers that has one here."""


def _is_linear(name: str, module: nn.Module, called: str) -> bool:
    """Whether a parameter is that of a Linear of this name."""
    return isinstance(module, nn.Linear) and own_name(name.rpartition(".")[0]) == called


def _of_mixer(name: str, module: nn.Module) -> str | None:
    """What a module with a decay calls one of its own parameters; None for other modules."""
    return own_name(name) if hasattr(module, "A_log") else None


def _dt_bias(config: Any) -> Fill:
    return _dt_bias_of(*(f"time_step_{key}" for key in ("min", "max", "floor")), config=config)


def _dt_bias_of(*names: str, config: Any) -> Fill:
    """The inverse softplus of a log-uniform time step, whose least, largest and floor are settings."""
    return _inverse_softplus(*(number.positive(name, setting(config, name)) for name in names))


def _inverse_softplus(low: float, high: float, floor: float) -> Fill:
    """What softplus makes log-uniform values in [low, high) of, at least ``floor``."""
    drawn = Fill.uniform(math.log(low), math.log(high)).then("exp")
    return drawn.then("clamp_min", floor).then("inverse_softplus")


def _dt_weight(config: Any) -> Fill | None:
    bound = count_of(config, "time_step_rank") ** -0.5 * number_of(config, "time_step_scale")
    scheme = setting(config, "time_step_init_scheme")
    return {"constant": Fill.constant(bound), "random": within(bound)}.get(scheme)


def _out(shape: torch.Size, config: Any) -> Fill:
    """What ends a residual branch, less by the root of their number."""
    return within((fans.fans_of(shape)[0] * count_of(config, "num_hidden_layers")) ** -0.5)


def _rescales(config: Any) -> bool:
    return bool(setting(config, "rescale_prenorm_residual", default=False))


def _experts(name: str, module: nn.Module, config: Any) -> Fill | None:
    """Of a mixture's experts, all in one parameter of their family's class, and of its router."""
    kind, own = type(module).__name__, own_name(name)
    if kind.endswith("Experts") and own in ("gate_up_proj", "up_proj", "down_proj"):
        return normal(std_of(config))
    if kind.endswith("Router"):
        laws = {"weight": normal(std_of(config)), "e_score_correction_bias": ZERO}
        return laws.get(own)
    return None
