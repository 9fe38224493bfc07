"""What ranks that failed have left in the store, for those that can no longer hear them."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from ranks_seen import as_rank

from fastinit.base import distributed_internals as distributed
from fastinit.base import ranks


class Store:
    """One that says that it has every key, as that of torch's fake groups does from 2.14 on."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = words

    def check(self, keys: list[str]) -> bool:
        return True

    def get(self, key: str) -> bytes:
        return next(
            (w for i, w in enumerate(self.words) if key == ranks._KEY.format(i)), ""
        ).encode()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("", "", "", ""), ""),
        (("", "", "KeyError: 'b'", ""), "rank 2 failed: KeyError: 'b'"),
        (("its own are not asked", "", "", ""), ""),
    ],
)
def test_what_says_nothing_is_no_failure(
    monkeypatch: pytest.MonkeyPatch, words: Sequence[str], said: str
) -> None:
    with as_rank(0, 4):
        monkeypatch.setattr(distributed, "default_store", lambda: Store(words))
        assert ranks._said_before(None) == said
