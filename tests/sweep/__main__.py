"""Runs the sweep: ``python -m sweep [package[/model] ...]``, with * and ? in names."""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

from sweep import alone
from sweep.report import progress, summary

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
UNFINISHED = ROOT / "build" / "sweep.jsonl"
LOG = ROOT / "build" / "sweep.log"
"""What models print."""

Result = dict[str, Any]
Key = tuple[str, str]  # package and model


def sweep(patterns: list[str], again: list[str], further: list[str]) -> int:
    """Runs it, writes what it found to ``results.json``, and returns how many models don't agree.

    Args:
        patterns: which models; all if there are none.
        further: which of ``checks.FURTHER`` is asked.
        again: only those with one of these outcomes in ``results.json``; all if there are none.
    """
    UNFINISHED.parent.mkdir(exist_ok=True)
    alone.prepare()
    from sweep.packages import PACKAGES

    before = json.loads(RESULTS.read_text()) if RESULTS.exists() else {"packages": {}, "models": []}
    finished: dict[Key, Result] = {(row["package"], row["model"]): row for row in before["models"]}
    asked = [p for p in PACKAGES if not patterns or any(_may_be_in(p, name) for name in patterns)]
    found = alone.packages(asked)
    there = {(p, name): find for p in found for name, find in found[p]["cases"].items()}
    wanted = [key for key in there if not patterns or any(_fits(key, p) for p in patterns)]
    # A part of a sweep is to be a part of every package.
    size = Counter(package for package, _ in wanted)
    place = {
        key: i / size[key[0]] for p in size for i, key in enumerate(k for k in wanted if k[0] == p)
    }
    wanted.sort(key=place.__getitem__)
    if again:
        wanted = [key for key in wanted if finished.get(key, {}).get("outcome") in again]

    done = _read(UNFINISHED)
    is_finished, started = True, time.monotonic()
    try:
        with UNFINISHED.open("a") as stream:
            for count, key in enumerate(wanted, 1):
                if key in done:
                    continue
                done[key] = alone.examined(there[key], LOG, further)
                print(json.dumps([*key, done[key]]), file=stream, flush=True)
                seconds = time.monotonic() - started
                print(progress(count, len(wanted), key, done[key], seconds), flush=True)
    except KeyboardInterrupt:  # what there is, is a result; the rest is for the next time
        is_finished = False

    gone = {key for key in finished if key[0] in found and key not in there}
    results = {**finished, **done}
    results = {key: r for key in results if (r := results[key]) is not None and key not in gone}
    order = {package: place for place, package in enumerate(PACKAGES)}
    results = dict(sorted(results.items(), key=lambda item: order[item[0][0]]))
    versions = {
        p: found[p]["version"] if p in found else before["packages"].get(p) for p in PACKAGES
    }
    _write(versions, results)
    if is_finished:
        UNFINISHED.unlink()
    print(summary(versions, results))
    return sum(result["outcome"] in ("differs", "raises") for result in results.values())


def _fits(key: Key, pattern: str) -> bool:
    return key[0] == pattern or fnmatch.fnmatchcase("/".join(key), pattern)


def _may_be_in(package: str, pattern: str) -> bool:
    return fnmatch.fnmatchcase(package, pattern.partition("/")[0])


def _read(path: Path) -> dict[Key, Result | None]:
    lines = path.read_text().splitlines() if path.exists() else []
    return {(package, name): result for package, name, result in map(json.loads, lines)}


def _write(versions: dict[str, str | None], results: dict[Key, Result]) -> None:
    """As JSON with a line for each model, so that a change of one is one line's."""
    rows = [
        json.dumps({"package": package, "model": name, **result}).replace(f"{ROOT}/", "")
        for (package, name), result in results.items()
    ]
    lines = ",\n    ".join(rows)
    RESULTS.write_text(
        f'{{\n  "packages": {json.dumps(versions)},\n  "models": [\n    {lines}\n  ]\n}}\n'
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m sweep", description=__doc__)
    parser.add_argument("models", nargs="*", help="package or package/model, with * and ?")
    parser.add_argument(
        "--again",
        default="",
        metavar="OUTCOMES",
        help="only those with these results, such as differs,raises",
    )
    parser.add_argument(
        "--further", default="", metavar="CHECKS", help="also those that run the model: lsuv"
    )
    given = parser.parse_args()
    os.nice(5)
    again, further = (
        [word for word in text.split(",") if word] for text in (given.again, given.further)
    )
    wrong = sweep(given.models, again, further)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
