"""Selected: memory that only has some elements of other memory, as they are there.

So constructors make a part of a parameter of the whole: it is drawn, and some rows or columns of it are
kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastinit.plan.fill import Fill
from fastinit.plan.history import Call, Contents, Given, Own, Snapshot, leaves

_aten = torch.ops.aten
_SELECT = {
    _aten.copy_.default,
    _aten.cat.default,
    _aten.clone.default,
    _aten._to_copy.default,
}
"""Operations whose elements are those of their arguments, each once."""


def selected_law(contents: Contents, numel: int) -> Fill | None:
    """The law of which memory has some of the elements, each at most once; None if it is not so.

    Args:
        contents: of the memory.
        numel: how many elements the law was drawn for, in all.
    """
    while not contents.fills:
        source = _source(contents)
        if source is None or source.dtype not in (contents.dtype, torch.float32, torch.float64):
            return None  # or rounded twice
        contents = source
    [first, *more] = contents.fills
    fill, whole = first.fill, first.region.merged() == contents.whole
    if more or not whole or first.shape is not None or contents.numel != numel or fill.parts:
        return None
    return fill if fill.stream is None else None


def _source(contents: Contents) -> Contents | None:
    """The only memory that some is made of, by selecting."""
    [*steps] = contents.steps()
    call = steps[0] if len(steps) == 1 else None
    if not isinstance(call, Call) or call.function not in _SELECT:
        return None
    read = leaves((call.args, call.kwargs))
    if any(isinstance(leaf, (Given, Tensor)) for leaf in read):
        return None
    views = [leaf for leaf in read if isinstance(leaf, Snapshot)]
    written = [leaf.view.where for leaf in read if isinstance(leaf, Own)]
    if any(where.merged() != contents.whole for where in written):
        return None
    once = all(
        view.view.is_plain(view.contents.dtype) and 0 not in view.view.where.strides
        for view in views
    )
    whole = sum(view.view.where.numel for view in views) == contents.numel
    alike = len({id(view.contents) for view in views}) == 1
    return views[0].contents if once and whole and alike else None
