"""Models: by a configuration's or a function's name, to one that is recorded and known to be written."""

from __future__ import annotations

import copy
import importlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from fastinit.command import faults
from fastinit.record.block import deferred
from fastinit.record.refused import DeferredError
from fastinit.stream.keys import check_seed

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
    path = _config_path(source)
    try:
        fields = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}{_hint(str(source))}") from None
    if not isinstance(fields, dict) or "model_type" not in fields:
        raise ValueError(f'{path} is not a transformers config: it has no "model_type"')
    families = _transformers().CONFIG_MAPPING
    family = fields["model_type"]
    if not isinstance(family, str) or family not in families:
        raise ValueError(f"{path}: transformers knows no model_type {family!r}")
    try:
        return families[family].from_dict(fields)
    except Exception as error:  # transformers' validators raise types of their own
        reason = " ".join(str(error).split())
        raise ValueError(f"{path} is not a valid {family} config: {reason}") from error


def build(source: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """A model by the name that the commands take, as :func:`fastinit.deferred` builds it.

    Args:
        source: as of :func:`load_config`; or ``module:function``, imported with the current directory on
            the path and called without arguments.
        dtype: of the parameters; buffers are what the constructor makes them.
        seed: in [0, 2^64).

    Raises:
        ValueError: no such source, or one that makes no model; a seed out of range.
        DeferredError: a constructor that cannot be recorded.
        ModuleNotFoundError: transformers is needed and not installed.
    """
    if _is_function(source):
        return from_function(source, dtype, seed)
    return from_config(load_config(source), dtype, seed)


def from_config(config: Any, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The model of a transformers configuration, as :func:`fastinit.deferred` builds it.

    The class is the first of ``config.architectures``, else the language model of its family, causal if
    it has one.

    Raises:
        ValueError: transformers has no such class, or it refuses the configuration.
        ModuleNotFoundError: transformers is not installed.
    """
    with deferred(check_seed(seed)):
        return _of_config(config, dtype)


def _of_config(config: Any, dtype: torch.dtype) -> nn.Module:
    transformers = _transformers()
    names = getattr(config, "architectures", None)
    if names and getattr(transformers, names[0], None) is None:
        raise ValueError(f"transformers knows no architecture {names[0]!r}")
    with faults.of_others(f"transformers cannot build this {config.model_type}", DeferredError):
        if names:
            model = getattr(transformers, names[0])._from_config(config, dtype=dtype)
        else:
            model = _auto_class(config).from_config(config, dtype=dtype)
    assert isinstance(model, nn.Module)
    return model


def from_function(source: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> nn.Module:
    """The model that ``module:function`` returns, as :func:`fastinit.deferred` builds it.

    Args:
        dtype: torch's default while it runs.

    Raises:
        ValueError: no such module or function, or it fails (with the lines where it did) or returns no
            module.
        DeferredError: what it does cannot be recorded.
    """
    seed = check_seed(seed)
    with _path_here(), faults.of_others(source, DeferredError):
        made = _imported(source)
        with _default(dtype), deferred(seed):
            model = made()
    return _checked(model, source)


def by_width(source: str, dtype: torch.dtype = torch.float32) -> Callable[[int], nn.Module]:
    """A function that makes the model of a width, for :func:`fastinit.coord_check`.

    Args:
        source: ``module:function``, which is called with the width; or as of :func:`load_config`. Then
            the width is ``hidden_size``, and as many times wider are ``intermediate_size`` and the
            numbers of heads: heads are of one size.
        dtype: of the parameters.

    Raises:
        ValueError: no such source. The function raises it for a width that does not fit the heads, and
            for what makes no model.
        ModuleNotFoundError: transformers is needed and not installed.
    """
    if _is_function(source):
        with _path_here(), faults.of_others(source):
            made = _imported(source)

        def build(width: int) -> nn.Module:
            said = f"{source} at width {width}"
            with _path_here(), faults.of_others(said, DeferredError), _default(dtype):
                model = made(width)
            return _checked(model, source)

        return build
    config = load_config(source)
    return lambda width: _of_config(_widened(config, width), dtype)


def _widened(config: Any, width: int) -> Any:
    """A configuration of another width."""
    base, wide = getattr(config, "hidden_size", None), copy.deepcopy(config)
    if not isinstance(base, int):
        raise ValueError(f"the config of a {config.model_type} has no hidden_size to be the width")
    wide.hidden_size = width
    for name in ("intermediate_size", "num_attention_heads", "num_key_value_heads"):
        if isinstance(of_base := getattr(config, name, None), int):
            grown = Fraction(of_base * width, base)
            if grown.denominator != 1 or not grown:
                raise ValueError(
                    f"width {width} is {Fraction(width, base)} of hidden_size {base}, but {name} is "
                    f"{of_base}, of which that is no whole number"
                )
            setattr(wide, name, int(grown))
    return wide


def _checked(model: Any, source: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"{source} must return a torch.nn.Module, but got {type(model).__name__}")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise ValueError(f"{source}: {name} has no shape: give lazy layers their sizes")
    return model


@contextmanager
def _default(dtype: torch.dtype) -> Iterator[None]:
    """In the block it is torch's default."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextmanager
def _path_here() -> Iterator[None]:
    """In the block the current directory is on the path, as python -m has it."""
    path = list(sys.path)
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.insert(0, "")
    try:
        yield
    finally:
        sys.path[:] = path


def _imported(source: str) -> Any:
    """What ``module:function`` names."""
    name, _, function = source.partition(":")
    try:
        made: Any = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # of a module that this one imports
        raise ModuleNotFoundError(f"there is no module {error.name!r} here") from None
    for part in function.split("."):
        made = getattr(made, part)
    if isinstance(made, nn.Module):
        raise TypeError("it is a model that was made already; name a function that returns one")
    return made


def _config_path(source: str | PathLike[str]) -> Path:
    """The file that a configuration is in."""
    path, name = Path(source), str(source)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ValueError(f"the directory {name!r} has no config.json")
        return path / "config.json"
    if path.exists():
        return path
    if name.lower() in shipped_configs():
        return _CONFIGS / f"{name.lower()}.json"
    names = ", ".join(shipped_configs())
    raise ValueError(
        f"model {name!r} is no file, none of {names}, and not module:function{_hint(name)}"
    )


def _hint(name: str) -> str:
    """What a name that is no configuration's was meant to be, perhaps."""
    if re.fullmatch(r".*\.py(:\w*)?", name):
        module = ".".join(Path(name.partition(".py")[0]).parts)
        return f"; of a Python file name the module and its function, as in {module}:build"
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not os.path.exists(name):
        return (
            f"; a model's name on the Hugging Face Hub is not looked up: download its config.json "
            f"(hf download {name} config.json --local-dir DIRECTORY) and name the directory"
        )
    return ""


def _is_function(source: str) -> bool:
    named = re.fullmatch(r"[\w.]+:[\w.]+", source) and ".py:" not in source
    return bool(named) and not Path(source).exists()


def _auto_class(config: Any) -> Any:
    """The auto class for the family's language model, or for its plain model if it has none."""
    transformers = _transformers()
    for name in ("AutoModelForCausalLM", "AutoModelForSeq2SeqLM"):
        auto = getattr(transformers, name)
        if type(config) in auto._model_mapping:
            return auto
    return transformers.AutoModel


def _transformers() -> Any:
    try:
        import transformers
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise ModuleNotFoundError(
            "transformers is needed to build models: pip install transformers safetensors",
            name="transformers",
        ) from None
    return transformers
