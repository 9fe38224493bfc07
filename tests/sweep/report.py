"""What the sweep found, as text: a line as it goes on, a table at the end."""

from __future__ import annotations

from collections import Counter
from typing import Any

OUTCOMES = ("agrees", "differs", "raises", "skipped")
WIDTH = 80


def progress(
    count: int, of: int, key: tuple[str, str], result: dict[str, Any] | None, seconds: float
) -> str:
    """A line for one model."""
    head = f"{count:4}/{of} {seconds:5.0f} s  {'/'.join(key)}"
    if result is None:
        return f"{head}: no model"
    text = f"{head}: {result['outcome']}"
    if "seconds" in result:
        took = result["seconds"]
        text += f", {result['parameters'] / 1e6:.2f} M"
        text += f", {took['eager']:.2f} s eager, {took['deferred']:.2f} s"
    why = result.get("why")
    if why:
        text += f": {why if isinstance(why, str) else why[0]}"
    return text if len(text) <= 2 * WIDTH else f"{text[: 2 * WIDTH - 3]}..."


def summary(versions: dict[str, str | None], results: dict[tuple[str, str], dict[str, Any]]) -> str:
    """The table: a line for each package, of outcomes and of how many models hold each check."""
    checks = sorted({name for result in results.values() for name in result.get("checks", ())})
    rows = [["package", "models", *OUTCOMES, *checks]]
    for package, version in versions.items():
        of_it = [result for (owner, _), result in results.items() if owner == package]
        counts = _counts(of_it, checks)
        rows.append([package, *(counts if version else "-" * len(counts))])
    rows.append(["all", *_counts(list(results.values()), checks)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for first, *others in rows:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:])]
        lines.append(" ".join([first.ljust(widths[0]), *cells]))
    assert len(lines[0]) <= WIDTH
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _counts(results: list[dict[str, Any]], checks: list[str]) -> list[str]:
    outcomes = Counter(result["outcome"] for result in results)
    held = [sum(r.get("checks", {}).get(name) == "holds" for r in results) for name in checks]
    return [str(n) for n in (len(results), *(outcomes[name] for name in OUTCOMES), *held)]
