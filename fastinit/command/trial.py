"""Trial: a model's run on random input, forward and backward, and what keeps it from running."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastinit.base.hooks import Uncopied
from fastinit.command import faults

BATCH, LENGTH = 1, 128
"""Of random tokens, by default."""

_SHAPE = "say what it takes, as --shape 8x64"

_TABLES = (nn.Embedding, nn.EmbeddingBag)

_EXTRA = 2  # rows that some families' tables of positions have beyond the positions


class Trial(NamedTuple):
    """What a model is run on.

    Args:
        sizes: of the input; of tokens (sequences, tokens of each).
        tokens: random tokens, which are their own labels; else standard normal values, and the loss is
            the mean square of the output.
        data: the option and the file that has the input, where it is not random.
    """

    sizes: tuple[int, ...]
    tokens: bool
    data: str = ""

    def __str__(self) -> str:
        sizes = " x ".join(map(str, self.sizes))
        return f"{sizes} random tokens" if self.tokens else f"normal input, {sizes}"

    def check(self, model: nn.Module, name: str) -> None:
        """Raises ValueError for what can be seen without running the model, which may be on meta."""
        if not self.tokens:
            return
        if not self.data and not isinstance(_config(model, "vocab_size"), int):
            raise ValueError(f"{name} takes no tokens: {_SHAPE}")
        most, length = _config(model, "max_position_embeddings"), self.sizes[1]
        words: Any = getattr(model, "get_input_embeddings", lambda: None)()
        tables = [m for m in model.modules() if isinstance(m, nn.Embedding) and m is not words]
        if not isinstance(most, int) or length <= most:
            return
        if any(most <= table.num_embeddings <= most + _EXTRA for table in tables):
            given = f"{self.data}: a row of" if self.data else "--length"
            raise ValueError(f"{given} {length} is beyond the {most} positions of {name}")

    def inputs(
        self, model: nn.Module, seed: int, device: torch.device, dtype: torch.dtype
    ) -> Tensor:
        """The same on every device; the model, which may be on meta, says how many tokens there are."""
        generator = torch.Generator().manual_seed(seed % 2**63)
        if self.tokens:
            some = torch.randint(_config(model, "vocab_size"), self.sizes, generator=generator)
        else:
            some = torch.randn(self.sizes, generator=generator).to(dtype)
        return some.to(device)

    def run(
        self,
        model: nn.Module,
        name: str,
        seed: int,
        device: torch.device,
        dtype: torch.dtype,
        gradients: bool,
    ) -> None:
        """One forward pass, and one backward. The input is the same on every device.

        Raises:
            ValueError: the model does not run on it, or gives no loss.
        """
        some = self.inputs(model, seed, device, dtype)
        doing = f"{name} does not run on {self}"
        with faults.of_others(doing), torch.set_grad_enabled(gradients), tables_asked(model):
            out = model(input_ids=some, labels=some) if self.tokens else model(some)
        loss = getattr(out, "loss", None) if self.tokens else out
        if not isinstance(loss, Tensor):
            what = "a loss" if self.tokens else "a tensor"
            raise ValueError(f"{name} must return {what}, but got {type(loss).__name__}")
        if not gradients:
            return
        if not loss.requires_grad:
            raise ValueError(f"{name} trains nothing, so it has no gradients: --no-gradients")
        with faults.of_others(doing):
            (loss if self.tokens else loss.square().mean()).backward()


@contextmanager
def tables_asked(model: nn.Module) -> Iterator[None]:
    """While in force, a row that a table does not have is an error which names the table.

    torch's own names neither, and on a GPU it ends every later use of the device.
    """

    def check(name: str, table: nn.Embedding | nn.EmbeddingBag, args: Any) -> None:
        rows = args[0] if args else None
        if isinstance(rows, Tensor) and not rows.is_floating_point() and rows.numel():
            low, high = int(rows.min()), int(rows.max())
            if low < 0 or high >= table.num_embeddings:
                raise IndexError(
                    f"{name} has rows 0 to {table.num_embeddings - 1}, but is asked for row "
                    f"{low if low < 0 else high}"
                )

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, _TABLES):
                asked = partial(check, name)
                hook = Uncopied(module.register_forward_pre_hook(asked))
                stack.callback(hook.remove)
        yield


def _config(model: nn.Module, field: str) -> Any:
    return getattr(getattr(model, "config", None), field, None)
