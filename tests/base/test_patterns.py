"""Patterns of names."""

import pytest

from fastinit.base.patterns import Choice, matches

NAMES = ("h.1.w", "h.11.w", "h.1.w.b", "h[1]", "h1", "H.1.w", "a*b", "")


@pytest.mark.parametrize(
    ("pattern", "wanted"),
    [
        ("h.1.w", {"h.1.w"}),
        ("h.*.w", {"h.1.w", "h.11.w"}),
        ("h.?.w*", {"h.1.w", "h.1.w.b"}),
        ("h[1]", {"h[1]", "h1"}),  # a name matches itself
        ("[hH].[!2].w", {"h.1.w", "H.1.w"}),
        ("a*b", {"a*b"}),
        ("*", set(NAMES)),
        ("", {""}),
        ("h", set()),
        (("h1", "*.b"), {"h1", "h.1.w.b"}),
        ((), set()),
    ],
)
def test_a_pattern_is_one_of_the_shell_on_the_whole_name(
    pattern: str | tuple[str, ...], wanted: set[str]
) -> None:
    assert {name for name in NAMES if matches(name, pattern)} == wanted
    assert {name for name in NAMES if name in Choice(pattern)} == wanted
