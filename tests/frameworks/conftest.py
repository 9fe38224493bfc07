"""Each file has ranks of its own: packages change torch in the processes that use them, for good.

DeepSpeed's zero.Init puts an ``__init_subclass__`` back into nn.Module that ends there what torchtitan's
classes would be told of their subclasses, which were then without an owner.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import ranks


@pytest.fixture(autouse=True, scope="module")
def _ranks_of_its_own() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranks.Ranks, "groups_end", False)  # DeepSpeed asks for its groups again
        yield
    ranks.close_pools()
