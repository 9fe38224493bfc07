"""``python -m benchmarks.readme``: writes the README's table of results from the saved ones."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
SHOWN = ("uniform", "normal", "trunc ±2σ", "trunc std=.02")
MARKED = re.compile(r"<!-- results -->.*?<!-- end of results -->", re.DOTALL)


def rendered() -> str:
    """The table between its marks, for the first results file by name."""
    path = min((ROOT / "benchmarks" / "results").glob("cpu-*.json"))
    results: dict[str, Any] = json.loads(path.read_text())
    machine = results["machine"]
    lines = [
        "<!-- results -->",
        "| law | dtype | threads | ns/element | GB/s | × torch.nn.init | × torch.zero_ |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    for record in results["fills"]:
        if record["law"] in SHOWN and not record["note"]:
            torch, zero = record["times torch"], record["times zero_"]
            lines.append(
                f"| {record['law']} | {record['dtype']} | {record['threads']} "
                f"| {record['ns per element']:.2f} | {record['GB per s']:.1f} "
                f"| {torch:.1f} | {zero:.2f} |"
            )
    elements = results["fills"][0]["elements"]
    lines += [
        "",
        f"`make bench` on {machine['cpu']}, {machine['cores']} cores, {machine['date']}: "
        f"{elements:,} elements, median of {results['rounds']} rounds; × is the peer's time over "
        "fastinit's in the same rounds, and `torch.zero_` stands for the machine's write limit.",
        "<!-- end of results -->",
    ]
    return "\n".join(lines)


def main() -> None:
    text = README.read_text()
    README.write_text(MARKED.sub(lambda _: rendered(), text))


if __name__ == "__main__":
    main()
