"""Progress: a bar on stderr with the rate and the time that remains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text
from torch import nn

from fastinit.base import text
from fastinit.base.hooks import Uncopied
from fastinit.command import output
from fastinit.plan.write import Progress as OnProgress


class _Rate(ProgressColumn):
    """How many there were in a second."""

    def __init__(self, what: str) -> None:
        super().__init__(table_column=Column(no_wrap=True))
        self.what = what

    def render(self, task: Task) -> Text:
        speed = task.speed or task.finished_speed
        return Text(f"{text.count(round(speed))} {self.what}/s" if speed else "")


def _columns(what: str, width: int) -> list[ProgressColumn]:
    """As many as a terminal of a width has room for: at least what is done and the time that remains."""
    remaining = [TimeRemainingColumn(), TextColumn("left")]  # with spaces 13 wide; 14 in rich 13.0
    if width < 52:
        return [_name(width - 14), *remaining]
    rate = _Rate(what)  # 18, see text.count
    if width < 80:
        return [_name(width - 32), rate, *remaining]
    name = TextColumn("{task.description:26}")
    return [name, BarColumn(bar_width=None), rate, TimeElapsedColumn(), *remaining]


def _name(width: int) -> ProgressColumn:
    """Of the work, cut short where it is longer."""
    return TextColumn("{task.description}", table_column=Column(no_wrap=True, max_width=width))


@contextmanager
def shown(
    name: str, total: int, what: str = "elements", speaks: bool = True
) -> Iterator[OnProgress | None]:
    """A bar; None, so that work goes in one piece, if nobody looks at it.

    Args:
        name: of the work.
        total: of it, in ``what``; the callback says it too.
        speaks: whether this process is the one to show it.
    """
    console = Console(stderr=True)
    # rich takes FORCE_COLOR for a terminal, and would leave what moves a cursor in a file.
    if not speaks or not output.shows_progress() or console.is_dumb_terminal:
        yield None
        return
    with Progress(*_columns(what, console.width), console=console, transient=True) as bar:
        task = bar.add_task(name, total=total)
        yield lambda done, total: bar.update(task, completed=min(done, total), total=total)


@contextmanager
def running(name: str, model: nn.Module, runs: int, gradients: bool) -> Iterator[None]:
    """In the block a model runs: a bar counts the parameters' elements behind which it is.

    A block of layers tells when it is done; a layer does not, as a hook of it may be a part of it.

    Args:
        runs: how often it does.
        gradients: also backward, where a parameter is done when its gradient is there.
    """
    sizes = {id(p): p.numel() for p in model.parameters()}
    trained = [p for p in model.parameters() if p.requires_grad and gradients]
    total = runs * (sum(sizes.values()) + sum(p.numel() for p in trained))
    with shown(name, total) as progress, ExitStack() as hooks:
        if progress is not None:
            done, seen = 0, set[int]()

            def count(elements: int) -> None:
                nonlocal done
                done += elements
                progress(done, total)

            def ran(module: nn.Module, *_: Any) -> None:
                new = {id(p) for p in module.parameters()} & sizes.keys() - seen
                seen.update(new)
                count(sum(sizes[one] for one in new))
                if module is model:
                    seen.clear()

            for module in model.modules():
                if not module._parameters and any(module.children()):
                    hooks.callback(Uncopied(module.register_forward_hook(ran)).remove)
            for parameter in trained:
                hook = parameter.register_post_accumulate_grad_hook(lambda p: count(p.numel()))
                hooks.callback(hook.remove)
        yield
