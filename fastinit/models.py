"""Models: from a transformers configuration to a model that is allocated and known to be written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter
from torch.utils.weak import WeakIdKeyDictionary

from fastinit.parameters import distinct_parameters, like
from fastinit.plan import Plan

M = TypeVar("M", bound=nn.Module)

_CONFIGS = Path(__file__).parent / "configs"


def shipped_configs() -> list[str]:
    """The names of the configurations that come with fastinit."""
    return sorted(path.stem for path in _CONFIGS.glob("*.json"))


def load_config(source: str | PathLike[str]) -> Any:
    """A transformers configuration from a file, a directory or a shipped name.

    Args:
        source: path to a ``config.json``, a directory that holds one, or one of
            :func:`shipped_configs` in any case.

    Raises:
        ValueError: no such file or name, not JSON, or not a configuration of a known family.
        ModuleNotFoundError: transformers is not installed.
    """
    path = Path(source)
    if path.is_dir():
        path /= "config.json"
    if not path.is_file():
        shipped = _CONFIGS / f"{str(source).lower()}.json"
        if str(source).lower() not in shipped_configs():
            names = ", ".join(shipped_configs())
            raise ValueError(f"config {str(source)!r} is neither a file nor one of {names}")
        path = shipped
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ValueError(f'{path} is not a transformers config: it has no "model_type"')
    families = _transformers().CONFIG_MAPPING
    family = fields["model_type"]
    if family not in families:
        raise ValueError(f"{path}: transformers knows no model_type {family!r}")
    try:
        return families[family].from_dict(fields)
    except Exception as error:  # transformers' validators raise types of their own
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a valid {family} config: {reason}") from error


def skeleton(config: Any, dtype: torch.dtype = torch.float32) -> nn.Module:
    """The model of a transformers configuration, with parameters on meta and real buffers.

    The class is the first of ``config.architectures``, else the causal language model of its family.
    No weight is written: transformers' own initialisation runs, but on meta does nothing.

    Args:
        dtype: of the parameters; buffers are what the constructor makes them.

    Raises:
        ValueError: transformers has no such class, or it refuses the configuration.
        ModuleNotFoundError: transformers is not installed.
    """
    transformers = _transformers()
    names = getattr(config, "architectures", None)
    if names and getattr(transformers, names[0], None) is None:
        raise ValueError(f"transformers knows no architecture {names[0]!r}")
    try:
        with parameters_on_meta():
            if names:
                model = getattr(transformers, names[0])._from_config(config, dtype=dtype)
            else:
                model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"transformers cannot build this {config.model_type}: {error}") from error
    assert isinstance(model, nn.Module)
    return model


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """While in force, every parameter becomes meta as a module registers it; buffers stay real.

    Memory that a constructor asks for is never touched, so it costs address space only. Tied
    parameters stay tied, and those without a shape yet (lazy modules) stay as they are. Not safe for
    threads that build modules meanwhile: ``nn.Module`` itself is changed.
    """
    original = nn.Module.register_parameter
    replaced = WeakIdKeyDictionary()

    def register_parameter(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        if isinstance(param, nn.Parameter) and not (
            param.is_meta or isinstance(param, UninitializedParameter)
        ):
            if param not in replaced:
                replaced[param] = like(param, torch.device("meta"), param.dtype)
            param = replaced[param]
        original(self, name, param)

    nn.Module.register_parameter = register_parameter  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = original  # type: ignore[method-assign]


def unwritten(model: nn.Module, plan: Plan) -> list[str]:
    """Names of parameters that are on meta or not in the plan, and of buffers that are on meta."""
    names = [
        names[0]
        for names, _, parameter in distinct_parameters(model)
        if parameter.is_meta or not any(name in plan for name in names)
    ]
    return names + [name for name, buffer in model.named_buffers() if buffer.is_meta]


def check_written(model: nn.Module, plan: Plan) -> None:
    """Raises ValueError with their names if the plan leaves parameters or buffers unwritten."""
    if names := unwritten(model, plan):
        raise ValueError("left unwritten: " + ", ".join(names))


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "transformers is needed to build models: pip install fastinit[models]",
            name="transformers",
        ) from None
    return transformers
