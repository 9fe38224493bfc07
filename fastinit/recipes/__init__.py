"""Recipes: named rules from (name, module, shape, config) to a Fill, each with its source.

A rule returns None for what it does not know, and ``Plan.from_model`` lists that as an error, as it
does a pattern of names that matches nothing: a recipe is applied in full or not at all. It knows a
parameter by what that is to its module's class (:mod:`fastinit.recipes.roles`), or by a name that its
source has. One's own rule is any function of that form, or made of others by :func:`by_name` and
:func:`first_of`.

A rule has to be told some things, which it takes from ``config``, an object with attributes or a
mapping (by default the model's own). What else there is to say are arguments of a function that makes
the rule: :func:`deepnorm`, :func:`t_fixup`, :func:`fixup`, :func:`rezero`, :func:`skipinit`,
:func:`orthogonal`, :func:`delta_orthogonal`, and :func:`mup`, :func:`completep` and :func:`depth_mup`,
which need the base model. :data:`NAMES` has all rules but these three.

A parametrisation is more than initial weights: muP's, the spectral one and those of depth also say
what an optimizer's settings are multiplied by, for each parameter, and :func:`param_groups` makes its
groups of them.

In: a name, a module, its shape and config. Out: Fills.
It may import base, elements, stream, fills, plan.
"""

from fastinit.plan.ruled import Rule
from fastinit.recipes.depth import completep, depth_multiplier, depth_mup
from fastinit.recipes.optimizer_groups import param_groups
from fastinit.recipes.orthogonal_layers import delta_orthogonal, orthogonal
from fastinit.recipes.residual import deepnorm, deepnorm_constants, fixup, rezero, skipinit, t_fixup
from fastinit.recipes.rules import Scaling, by_name, first_of
from fastinit.recipes.spectral_widths import spectral
from fastinit.recipes.state_space import gated_delta_net, mamba, mamba2, rwkv
from fastinit.recipes.torch_layers import torch_default, torch_transformer
from fastinit.recipes.transformers import (
    bert,
    gemma,
    gpt2,
    llama,
    neox,
    t5,
    transformers_default,
    transformers_family,
    transformers_vit,
)
from fastinit.recipes.vision import vit, vit_jax, vit_moco
from fastinit.recipes.widths import base_shapes, mup, mup_learning_rates

NAMES: dict[str, Rule] = {
    "torch_default": torch_default,
    "torch_transformer": torch_transformer,
    "transformers_default": transformers_default,
    "bert": bert,
    "gated_delta_net": gated_delta_net,
    "gemma": gemma,
    "gpt2": gpt2,
    "llama": llama,
    "mamba": mamba,
    "mamba2": mamba2,
    "neox": neox,
    "rwkv": rwkv,
    "t5": t5,
    "transformers_vit": transformers_vit,
    "vit": vit,
    "vit_jax": vit_jax,
    "vit_moco": vit_moco,
    "deepnorm": deepnorm(),
    "delta_orthogonal": delta_orthogonal(),
    "fixup": fixup(),
    "orthogonal": orthogonal(),
    "rezero": rezero(),
    "skipinit": skipinit(),
    "spectral": spectral,
    "t_fixup": t_fixup(),
}
"""The rules by name, those that are made with the arguments that they have by default."""

__all__ = [
    "NAMES",
    "Rule",
    "Scaling",
    "base_shapes",
    "bert",
    "by_name",
    "completep",
    "deepnorm",
    "deepnorm_constants",
    "delta_orthogonal",
    "depth_multiplier",
    "depth_mup",
    "first_of",
    "fixup",
    "gated_delta_net",
    "gemma",
    "gpt2",
    "llama",
    "mamba",
    "mamba2",
    "mup",
    "mup_learning_rates",
    "neox",
    "orthogonal",
    "param_groups",
    "rezero",
    "rwkv",
    "skipinit",
    "spectral",
    "t5",
    "t_fixup",
    "torch_default",
    "torch_transformer",
    "transformers_default",
    "transformers_family",
    "transformers_vit",
    "vit",
    "vit_jax",
    "vit_moco",
]
