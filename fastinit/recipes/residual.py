"""Residual networks whose branches start small: DeepNorm, T-Fixup, Fixup, ReZero and SkipInit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import nn

from fastinit.base import number
from fastinit.base.patterns import Patterns, matches, several
from fastinit.fills import fans
from fastinit.fills.layer_kinds import CONVOLUTIONS
from fastinit.plan.fill import Fill
from fastinit.plan.ruled import Rule
from fastinit.recipes.fills import ONE, ZERO, embedding, normal, uniform
from fastinit.recipes.roles import own_name, role
from fastinit.recipes.rules import (
    Checked,
    by_name,
    count_of,
    first_of,
    needs,
    setting,
)
from fastinit.recipes.torch_layers import torch_default

BRANCH = (
    "*fc1.weight",
    "*fc2.weight",
    "*linear1.weight",
    "*linear2.weight",
    "*v_proj.weight",
    "*out_proj.weight",
)
"""Weights of a transformer's branches, but q and k, in fairseq, torchscale and ``torch.nn``."""


class Depth(NamedTuple):
    """How many layers the encoder and the decoder have; 0 for the one that is not there."""

    encoder: int
    decoder: int

    @classmethod
    def of(cls, encoder_layers: int | None, decoder_layers: int | None) -> Depth:
        """Of whole numbers that are not negative; None is 0."""
        given = (("encoder_layers", encoder_layers), ("decoder_layers", decoder_layers))
        return cls(*(0 if n is None else number.integer(name, n, least=0) for name, n in given))


class DeepNormConstants(NamedTuple):
    """alpha multiplies the residual stream, in forward; beta is the gain of weights in a branch."""

    alpha: float
    beta: float


def deepnorm_constants(
    encoder_layers: int, decoder_layers: int, *, decoder: bool
) -> DeepNormConstants:
    """DeepNorm's constants for one side of a transformer.

    Source: Wang et al. 2022, arXiv 2203.00555, figure 2 (with N = encoder and M = decoder layers);
    xformers' ``get_deepnorm_coefficients``. (torchscale 0.3 has 1.15 for the 0.87 of an encoder with a
    decoder, that is 1 / 0.87.)

    Raises:
        NumberTypeError, NumberRangeError: numbers of layers that are none; a side without layers.

    >>> round(deepnorm_constants(18, 0, decoder=False).beta, 4)
    0.2887
    """
    n = number.integer("encoder_layers", encoder_layers, least=0 if decoder else 1)
    m = number.integer("decoder_layers", decoder_layers, least=1 if decoder else 0)
    if n and m:
        if decoder:
            return DeepNormConstants((3 * m) ** 0.25, (12 * m) ** -0.25)
        return DeepNormConstants(0.81 * (n**4 * m) ** 0.0625, 0.87 * (n**4 * m) ** -0.0625)
    layers = m if decoder else n
    return DeepNormConstants((2 * layers) ** 0.25, (8 * layers) ** -0.25)


def deepnorm(
    encoder_layers: int | None = None,
    decoder_layers: int | None = None,
    *,
    branch: Patterns = BRANCH,
) -> Rule:
    """DeepNorm: Xavier normal, with the gain beta for the value, output and feed-forward weights.

    q, k and matrices outside of branches have gain 1, embeddings the std d^-1/2 (fairseq's), biases are
    0, norms weight 1, bias 0. The model itself multiplies its residual stream by alpha
    (:func:`deepnorm_constants`). Of ``nn.MultiheadAttention``'s joint matrix the last third is v's.

    Source: Wang et al. 2022, arXiv 2203.00555, figure 2. (torchscale multiplies by beta what its layers
    have by default: Xavier uniform in attention, torch's own in the feed-forward part.)

    Args:
        encoder_layers, decoder_layers: the depth; by default the ``encoder_layers`` and
            ``decoder_layers`` of the config, or its ``num_hidden_layers`` (or ``n_layer``) for a model
            of one stack. With both, a parameter is the decoder's if ``decoder`` is in its path.
        branch: patterns of the weights that beta is for; one at least has to match.

    Raises:
        NumberTypeError, NumberRangeError: numbers of layers that are none.
    """
    given = _given(encoder_layers, decoder_layers)

    def gain(name: str, config: Any) -> float:
        depth = _depth(given, config)
        return deepnorm_constants(*depth, decoder=_is_decoder(name, depth)).beta

    return _transformer(branch, normal, gain, lambda name, config: 1.0)


def t_fixup(
    encoder_layers: int | None = None,
    decoder_layers: int | None = None,
    *,
    branch: Patterns = BRANCH,
) -> Rule:
    """T-Fixup: Xavier uniform, value, output and feed-forward weights scaled, to train without norms.

    By 0.67 N^-1/4 in an encoder and (9 N)^-1/4 in a decoder of N layers; embeddings are of std d^-1/2
    times (9 N)^-1/4, with the encoder's N where both sides share one; biases 0; norms, which it makes
    needless, weight 1, bias 0.

    Source: Huang et al. 2020, "Improving Transformer Optimization Through Better Initialization" (ICML,
    PMLR 119); layer6ai-labs/T-Fixup, ``fixup_initialization`` in ``modules/transformer_layer.py`` and
    the constructors of ``models/transformer.py``. (There v is multiplied by sqrt(2) too, to undo
    fairseq's smaller start, which q and k keep.)

    Args:
        encoder_layers, decoder_layers, branch: as of :func:`deepnorm`, as are exceptions.
    """
    given = _given(encoder_layers, decoder_layers)

    def layers(name: str, config: Any) -> tuple[int, bool]:
        depth = _depth(given, config)
        is_decoder = _is_decoder(name, depth)
        # An embedding that both sides share is named after neither.
        return (depth.decoder if is_decoder else depth.encoder), is_decoder

    def gain(name: str, config: Any) -> float:
        count, is_decoder = layers(name, config)
        return float((9 * count) ** -0.25 if is_decoder else 0.67 * count**-0.25)

    def embedding_gain(name: str, config: Any) -> float:
        return float((9 * layers(name, config)[0]) ** -0.25)

    return _transformer(branch, uniform, gain, embedding_gain)


def fixup(
    branches: int | None = None,
    layers_per_branch: int = 2,
    *,
    branch: Patterns = "*layer*.conv?.weight",
    last: Patterns | None = None,
    classifier: Patterns = "*fc.*",
) -> Rule:
    """Fixup: residual branches that start at 0, to train without normalisation.

    1. The classifier and the last layer of each branch are 0. 2. The other layers are He normal
    (fan_out), those inside a branch times L^(-1 / (2 m - 2)). 3. Scalar multipliers (``*scale``) are 1
    and scalar biases (``*bias*``) 0. A norm gets no Fill, which is an error: there should be none.

    Source: Zhang, Dauphin & Ma 2019, arXiv 1901.09321, the three rules of "Fixup initialization", of
    which 2 says "a standard method (e.g., He)"; hongyi-zhang/Fixup, ``FixupResNet``, whose names the
    patterns are for and which has fan_out. (It leaves the stem, ``conv1``, as torch makes it.)

    Args:
        branches: L, the number of residual branches; by default the config's ``branches``.
        layers_per_branch: m, at least 2: 2 in the authors' basic block, 3 in their bottleneck.
        branch: patterns of the weights inside branches.
        last: patterns of the last of them, by default ``*layer*.conv{m}.weight``.
        classifier: patterns of the classifier's parameters.

    Raises:
        NumberTypeError, NumberRangeError: numbers that are none, or no branches, or a branch of fewer
            than 2 layers, which the scale is not defined for.
        ValueError: from
            ``Plan.from_model``, where ``last`` is the default, branches of more layers than m.
    """
    layers_per_branch = number.integer("layers_per_branch", layers_per_branch, least=2)
    if branches is not None:
        branches = number.integer("branches", branches, least=1)

    def he(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        if not isinstance(module, (nn.Linear, *CONVOLUTIONS)):
            return _scalar(name, shape)
        part = role(name, module, shape)
        if part != "weight":
            return ZERO if part == "bias" else None
        return normal(fans.kaiming_std(fans.fans_of(shape), mode="fan_out", nonlinearity="relu"))

    def scaled(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        count = count_of(config, "branches") if branches is None else branches
        fill = he(name, module, shape, config)
        return fill and fill.scaled(count ** (-1 / (2 * layers_per_branch - 2)))

    ends = f"*layer*.conv{layers_per_branch}.weight" if last is None else last
    rule = first_of(by_name({ends: ZERO, branch: scaled, classifier: ZERO}), he)

    def check(names: Sequence[str]) -> None:
        longer = f"*layer*.conv{layers_per_branch + 1}.weight"
        if last is None and any(matches(name, longer) for name in names):
            raise ValueError(
                f"layers_per_branch is {layers_per_branch}, but parameters match {longer}"
            )

    return Checked(rule, check)


def rezero(rest: Rule = torch_default, *, alphas: Patterns = "*resweight") -> Rule:
    """ReZero: x + alpha F(x) with a scalar alpha that starts at 0, so that the network is the identity.

    Source: Bachlechner et al. 2020, arXiv 2003.04887, equation 1; majumderb/rezero, whose name for the
    scalars is the default.

    Args:
        rest: for all other parameters.
        alphas: patterns of the scalars.
    """
    return first_of(by_name({alphas: ZERO}), rest)


def skipinit(
    rest: Rule = torch_default, *, alphas: Patterns = "*skipinit_gain", value: float = 0.0
) -> Rule:
    """SkipInit: a scalar at the end of each residual branch that starts at 0, or little above.

    Source: De & Smith 2020, arXiv 2002.10444; deepmind-research, ``nfnets/skipinit_resnet.py``. timm's
    name for the scalars is the default.

    Args:
        rest: for all other parameters.
        alphas: patterns of the scalars.
        value: of the scalars, at most 1 / sqrt(branches).
    """
    return first_of(by_name({alphas: Fill.constant(value)}), rest)


Gain = Callable[[str, Any], float]
"""(name, config) to a factor."""

FillOfStd = Callable[[float], Fill]
"""The Fill of mean 0 and a given std, such as :func:`normal`."""


def _transformer(branch: Patterns, law: FillOfStd, gain: Gain, embedding_gain: Gain) -> Rule:
    """Xavier matrices, with a gain in branches; embeddings; biases 0; norms weight 1, bias 0."""

    def rule(name: str, module: nn.Module, shape: torch.Size, config: Any) -> Fill | None:
        own, part = own_name(name), role(name, module, shape)
        if part is None:
            return None
        if isinstance(module, nn.Embedding):
            std = embedding_gain(name, config) * shape[1] ** -0.5
            return embedding(module, shape, normal(std))
        if isinstance(module, nn.MultiheadAttention):
            factor = gain(name, config)
            if own == "in_proj_weight":
                size = shape[0] // 3
                std = fans.xavier_std((shape[1], size))
                v = torch.empty(shape, device="meta")[2 * size :]
                return law(std).with_part(v, law(factor * std))
            if own.endswith("_proj_weight"):
                std = fans.xavier_std(fans.fans_of(shape))
                return law(factor * std if own == "v_proj_weight" else std)
        elif isinstance(module, nn.Linear):
            if part == "bias":
                return ZERO
            factor = gain(name, config) if matches(name, branch) else 1.0
            return law(factor * fans.xavier_std(fans.fans_of(shape)))
        return torch_default(name, module, shape, config)

    return needs(*several(branch))(rule)


def _given(encoder_layers: int | None, decoder_layers: int | None) -> Depth | None:
    if encoder_layers is None and decoder_layers is None:
        return None
    depth = Depth.of(encoder_layers, decoder_layers)
    if not any(depth):
        raise number.NumberRangeError(f"the recipe needs a number of layers, but got {depth}")
    return depth


def _depth(given: Depth | None, config: Any) -> Depth:
    """What the recipe was given, or else the configuration's."""
    if given is not None:
        return given
    names = ("encoder_layers", "decoder_layers")
    depth = Depth.of(*(setting(config, name, default=0) for name in names))
    return (
        depth if any(depth) else Depth(count_of(config, *names, "num_hidden_layers", "n_layer"), 0)
    )


def _is_decoder(name: str, depth: Depth) -> bool:
    return depth.decoder > 0 and (depth.encoder == 0 or "decoder" in name.split("."))


def _scalar(name: str, shape: torch.Size) -> Fill | None:
    own = own_name(name)
    if shape.numel() != 1:
        return None
    return ONE if own.endswith("scale") else ZERO if "bias" in own else None
