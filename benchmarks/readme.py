"""``python -m benchmarks.readme``: writes the README's tables of results from the saved ones."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
RESULTS = ROOT / "benchmarks" / "results"
SHOWN = ("uniform", "normal", "trunc ±2σ", "trunc std=.02")


def fills() -> list[str]:
    """The first results file by name."""
    path = min(RESULTS.glob("cpu-*.json"))
    results: dict[str, Any] = json.loads(path.read_text())
    machine = results["machine"]
    lines = [
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
    return [
        *lines,
        "",
        f"`make bench` on {machine['cpu']}, {machine['cores']} cores, {machine['date']}: "
        f"{elements:,} elements, median of {results['rounds']} rounds; × is the peer's time over "
        "fastinit's in the same rounds, and `torch.zero_` stands for the machine's write limit.",
    ]


def lsuv() -> list[str]:
    results: dict[str, Any] = json.loads((RESULTS / "lsuv.json").read_text())
    machine = results["machine"]
    lines = [
        "| net | plain forward | `lsuv_` | published procedure | largest distance of a std from 1 |",
        "|---|---:|---:|---:|---:|",
    ]
    for net in results["nets"]:
        about = "about " if net["peer extrapolated"] else ""
        lines.append(
            f"| {net['net']} | {net['forward seconds']:.2f} s "
            f"| {net['lsuv_ times forward']:.2f} × that | {about}{net['times peer']:.0f} × `lsuv_` "
            f"| {net['lsuv_ max |std - 1|']:.1e} |"
        )
    return [
        *lines,
        "",
        f'`make lsuv` on {machine["cpu"]}, {machine["cores"]} cores, {machine["date"]}. "about": the '
        "published procedure ran for some of the layers, the rest is in proportion.",
    ]


def digits() -> list[str]:
    records: list[dict[str, Any]] = json.loads((RESULTS / "digits.json").read_text())
    seeds, steps = len(records[0]["accuracy"]), records[0]["steps"]
    lines = ["| net | initialisation | test accuracy, % |", "|---|---|---:|"]
    for record in records:
        mean, spread = statistics.mean(record["accuracy"]), statistics.stdev(record["accuracy"])
        lines.append(f"| {record['net']} | {record['init']} | {mean:.1f} ± {spread:.1f} |")
    return [
        f"Does it train? Nets without normalisation on scikit-learn's digits, {steps} steps of SGD, "
        f"mean ± standard deviation over {seeds} seeds; each net's learning rate is the one with the "
        "lowest training loss averaged over all initialisations (`make digits`):",
        "",
        *lines,
        "",
        "![Accuracies of all seeds](docs/digits.png)",
    ]


BLOCKS = {"results": fills, "lsuv": lsuv, "digits": digits}


def rendered(name: str) -> str:
    """A block of the README between its marks."""
    return "\n".join([f"<!-- {name} -->", *BLOCKS[name](), f"<!-- end of {name} -->"])


def main() -> None:
    text = README.read_text()
    for name in BLOCKS:
        marked = re.compile(rf"<!-- {name} -->.*?<!-- end of {name} -->", re.DOTALL)
        text, found = marked.subn(lambda _, name=name: rendered(name), text)
        assert found == 1, name
    README.write_text(text)


if __name__ == "__main__":
    main()
