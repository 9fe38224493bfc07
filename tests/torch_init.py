"""The public functions of torch.nn.init: torch 2.6 has no ``__all__`` there, and helpers are no API."""

from inspect import isfunction

from torch.nn import init

FUNCTIONS = [
    name
    for name, what in vars(init).items()
    if isfunction(what) and what.__module__ == init.__name__ and not name.startswith("_")
]
