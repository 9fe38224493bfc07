"""fastinit: weight initialisation at memory speed, the same bits everywhere."""

from fastinit import init
from fastinit.backends import backend, info

__all__ = ["backend", "info", "init"]
