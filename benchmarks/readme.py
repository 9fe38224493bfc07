"""``python -m benchmarks.readme``: writes the results in the README and docs/ from the saved ones."""

from __future__ import annotations

import csv
import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.timing import RESULTS, newest, saved, where

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
TABLES = ROOT / "docs" / "benchmarks.md"
WATCH = ROOT / "docs" / "leaving-it-on.md"
INSTALLING = ROOT / "docs" / "installing.md"
LARGE = ROOT / "docs" / "large-models.md"
BACKENDS = ROOT / "docs" / "backends.md"
SEEING = ROOT / "docs" / "seeing-variance.md"
LOW = ROOT / "docs" / "low-precision.md"
OPTIONS = {
    "higher=True": "`higher=True`",
    "histogram": "`histogram=True`",
    **{name: f'`formats=["{name}"]`' for name in ("e4m3", "mxfp8", "e4m3_tensor", "nvfp4")},
}
PEERS = {
    "sum": "`sum`, a plain read",
    "var_mean": "`var_mean`",
    "var": "`var`",
    "float().var()": "`float().var()`",
    "four eager": "mean, variance, largest magnitude and non-finite values, four calls",
    "compiled": "these four, compiled",
    "histc": "`histc` of the logarithms",
    "e4m3 by conversion": "what E4M3 loses, by converting",
}
BUILDS = {
    "avx512": ("AVX-512", "Intel from Skylake-X, AMD from Zen 4"),
    "avx2": ("AVX2", "other x86-64 since 2013"),
    "neon_sha3": (
        "NEON and SHA3",
        "Neoverse V1 and newer (Graviton 3, Grace), Apple from M1",
    ),
    "neon": ("NEON", "every AArch64 (Graviton 2, Ampere Altra)"),
}
SHOWN = ("uniform", "normal", "trunc ±2σ", "trunc std=.02")


def headline() -> list[str]:
    """The Llama that fastinit makes the most times as fast."""
    results = saved("materialize")
    llamas = [name for name in results["timings"] if name.startswith("Llama 1.1B")]
    name = max(llamas, key=lambda llama: _times(results["timings"][llama]))
    theirs, ours, touch = _medians(results["timings"][name])
    return [
        f"**A Llama of 1.1 billion parameters, from constructor to ready: {ours:.1f} s instead of "
        f"{theirs:.1f} s** ({name.split()[-1]}; {where(results['machine'])}; "
        "`python -m benchmarks.materialize`). One byte written on each page of the same memory takes "
        f"{touch:.1f} s.",
    ]


def materialize() -> list[str]:
    results = saved("materialize")
    lines = [
        "| model | constructor, s | fastinit, s | times as fast | × touch | × touch, 4 KiB pages |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for name, found in results["timings"].items():
        theirs, ours, touch = _medians(found)
        small = found["touch 4 KiB"]["median"]
        lines.append(
            f"| {name} | {theirs:.3f} | {ours:.3f} | {theirs / ours:.1f} | {ours / touch:.2f} | "
            f"{ours / small:.2f} |"
        )
    peaks = ", ".join(
        f"{memory['peak'] / memory['weights']:.2f} ({name})"
        for name, memory in results["peaks"].items()
    )
    return [
        *lines,
        "",
        f"`python -m benchmarks.materialize` on {where(results['machine'])}: median of "
        f"{results['rounds']} rounds, each in fresh memory. fastinit is `deferred()` and "
        "`materialize_`; touch is one byte written on each page of the same memory, which has huge "
        "pages where the system gives them, or the small ones that the constructor gets. The "
        f"Llama's peak memory is {peaks} times its weights.",
    ]


def large() -> list[str]:
    """What is larger than memory: written to disk, and given unit variance."""
    results = saved("write")
    written = results["write"]
    lsuv = saved("larger-than-memory")
    return [
        f"- A checkpoint of {written['model']} in {written['dtype']}, {written['bytes'] / 1e9:.1f} GB: "
        f"{written['write seconds']:.1f} s; the same bytes written plainly "
        f"{written['plain seconds']:.1f} s past the page cache and "
        f"{written['plain, page cache seconds']:.1f} s through it. Peak memory "
        f"{written['peak bytes'] / 2**20:.0f} MiB (`python -m benchmarks.write --model "
        f"{written['model']}`; {where(results['machine'])}).",
        f"- LSUV of {lsuv['layers']} layers with {lsuv['parameters'] / 1e9:.1f} billion parameters, "
        f"{lsuv['bytes'] / 1e9:.0f} GB in float32, which are never in memory: {lsuv['seconds']:.0f} s "
        f"for {lsuv['tokens']} tokens. Peak memory {lsuv['peak'] / 2**30:.2f} GiB, the plan "
        f"{lsuv['plan_bytes'] / 1e3:.0f} kB (`python -m benchmarks.larger_than_memory`; "
        f"{where(lsuv['machine'])}).",
    ]


def scale() -> list[str]:
    """What each of many parameters costs, and what follows for a machine that nobody here has."""
    results = newest("scale")
    kinds = {
        "plain build": "constructor",
        "deferred": "`deferred()`",
        "recorded_plan": "`recorded_plan`",
        "materialize_": "`materialize_`",
        "apply_": "`apply_`",
        "the fill of apply_": "of which the fill",
        "layout": "layout of a checkpoint",
    }
    lines = [f"| parameters | {' | '.join(kinds.values())} |", "|---:" * (len(kinds) + 1) + "|"]
    for row in results["steps"]:
        cells = " | ".join(f"{row[kind]:.2f}" for kind in kinds)
        lines.append(f"| {row['parameters']:,} | {cells} |")
    ranks = results["ranks"]
    worlds = ", ".join(f"{int(n):,}" for n in ranks)
    each = [1e6 * its["apply_"] / its["parameters"] for its in ranks.values()]
    turns = ", ".join(
        f"{1e3 * seconds:.2g} ms for {int(n):,}" for n, seconds in results["pieces"].items()
    )
    written = results["fill"]
    speed = written["bytes"] / written["seconds"]
    elements, world, tensors = 10**12, 1024, 100_000
    share = elements * 2 / world
    overhead = tensors * max(each) / 1e6
    return [
        *lines,
        "",
        f"CPU seconds of one thread, of a mixture of experts whose matrices are {results['width']} x "
        f"{results['width']} in float32. On one rank of FSDP2, `apply_` takes "
        f"{', '.join(f'{us:.0f}' for us in each)} µs a parameter in worlds of {worlds}. Which elements "
        f"a shard in many turns has (FSDP2 over tensor parallelism) takes {turns} turns "
        f"(`python -m benchmarks.scale`; {where(results['machine'])}).",
        "",
        f"Computed, not measured: {elements:,} parameters in bfloat16 on {world:,} ranks. A rank writes "
        f"{elements:,} x 2 bytes / {world:,} = {share / 1e9:.2f} GB. One thread writes "
        f"{speed / 1e9:.2f} GB/s of normal numbers, so {share / 1e9:.2f} / {speed / 1e9:.2f} = "
        f"{share / speed:.1f} s; {tensors:,} parameter tensors at {max(each):.0f} µs are "
        f"{overhead:.0f} s more. Together {share / speed + overhead:.0f} s on each rank, all at once, "
        f"with one thread of that CPU each and nothing communicated but two numbers.",
    ]


def fills() -> list[str]:
    results = newest("cpu")
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
        f"`make bench` on {where(results['machine'])}: "
        f"{elements:,} elements, median of {results['rounds']} rounds; × is the peer's time over "
        "fastinit's in the same rounds, and `torch.zero_` stands for the machine's write limit.",
    ]


def instructions() -> list[str]:
    """What each build for CPUs takes for a value, and where it runs."""
    with open(RESULTS / "asm.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["compiler"].startswith("GCC ")]
    counted = [row for row in rows if row["dtype"] == "float32"]
    laws = ("uniform", "normal", "truncated_normal", "moments")
    lines = [
        f"| build | {' | '.join(law.replace('_', ' ') for law in laws)} | runs on |",
        "|---" * 6 + "|",
    ]
    for build, (name, machines) in BUILDS.items():
        its = {row["law"]: float(row["instructions"]) for row in counted if row["build"] == build}
        cells = " | ".join(f"{its[law]:.1f}" for law in laws)
        lines.append(f"| {name} | {cells} | {machines} |")
    return lines


def lsuv() -> list[str]:
    results: dict[str, Any] = saved("lsuv")
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
        f'`make lsuv` on {where(results["machine"])}. "about": the '
        "published procedure ran for some of the layers, the rest is in proportion.",
    ]


def moments() -> list[str]:
    """What moments take, what each option adds, and what torch has for it."""
    results = newest("moments")
    told = {record["dtype"]: record["ns per element"] for record in results["moments"]}
    dtypes, known = list(told), list(dict.fromkeys(name for its in told.values() for name in its))
    lines = [f"| ns a value | {' | '.join(dtypes)} |", "|---" + "|---:" * len(dtypes) + "|"]

    def row(name: str, said: str, less: str | None = None) -> None:
        cells = (
            f"{its[name] - (its[less] if less else 0):.2f}" if name in its else ""
            for its in told.values()
        )
        lines.append(f"| {said} | {' | '.join(cells)} |")

    row("fastinit", "`moments(x)`")
    for name in known[1 : known.index("sum")]:
        row(name, f"+ {OPTIONS.get(name, name)}", less="fastinit")
    for name in known[known.index("sum") :]:
        row(name, f"torch: {PEERS[name]}")
    return [
        *lines,
        "",
        f"`python -m benchmarks.moments` on {where(results['machine'])}: "
        f"{results['moments'][0]['elements']:,} values, median of {results['rounds']} rounds in turns.",
    ]


def low_precision() -> list[str]:
    """Normals in few bits, beside bfloat16."""
    results = newest("low-precision")
    each = results["seconds a value"]
    lines = ["| normal in | ns a value | of bfloat16's |", "|---|---:|---:|"]
    for name, seconds in each.items():
        lines.append(f"| {name} | {1e9 * seconds:.2f} | {seconds / each['bfloat16']:.2f} |")
    side = results["side"]
    return [
        *lines,
        "",
        f"`python -m benchmarks.low_precision` on {where(results['machine'])}, one thread: "
        f"{side:,} x {side:,} values, median of {results['rounds']} rounds in turns.",
    ]


def watch() -> list[str]:
    """What a watch that stays on adds to a training."""
    results = newest("watch")
    lines = [
        "| model | layers | a step | `every=1` adds | quartiles | `every=100` adds |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for model in results["models"]:
        lines.append(
            f"| {model['model']} | {model['layers']} | {model['seconds a step']:.2f} s "
            f"| {model['cost of every=1']:.1%} "
            f"| {model['lower quartile']:.1%} to {model['upper quartile']:.1%} "
            f"| {model['cost of every=100']:.2%} |"
        )
    return [
        *lines,
        "",
        f"`python -m benchmarks.watch` on {where(results['machine'])}, "
        f"{results['machine']['fastinit']['threads']} threads: median of {results['rounds']} rounds, in "
        "which watched steps (gradients too, told to a file) and plain ones take turns. `every=100` is "
        "a hundredth of `every=1`, and what `step()` takes where nothing is measured.",
    ]


def digits() -> list[str]:
    records: list[dict[str, Any]] = saved("digits")
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
        "![Accuracies of all seeds](digits.png)",
    ]


def versions() -> list[str]:
    """What tools/versions.py ran."""
    path = RESULTS / "versions.json"
    if not path.exists():
        return ["`make versions` says it."]
    rows: dict[str, dict[str, str]] = json.loads(path.read_text())
    lines = ["| Python | torch | numpy | beside | tests |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        known = {key: row.pop(key) for key in ("python", "torch", "numpy") if key in row}
        said, day = row.pop("result"), row.pop("date")
        row.pop("machine", None)
        beside = ", ".join(f"{package} {version}" for package, version in row.items())
        if "python" not in known:
            said = f"{said} ({name})"
        cells = [known.get(key, "none") for key in ("python", "torch", "numpy")]
        lines.append(f"| {' | '.join(cells)} | {beside or 'none'} | {said}, {day} |")
    return [
        *lines,
        "",
        "`make versions`: each row an environment of its own, with a wheel built by its Python.",
    ]


def peers() -> list[str]:
    """Other generators, and whether theirs is the same work."""
    path = RESULTS / "peers.json"
    if not path.exists():
        return ["`make peers` measures them."]
    results = json.loads(path.read_text())
    told = {(r["peer"], r["law"], r["threads"]): r["ns"] for r in results["records"]}
    laws = list(dict.fromkeys(record["law"] for record in results["records"]))
    threads = sorted({record["threads"] for record in results["records"]})
    columns = [(law, count) for law in laws for count in threads]
    heads = " | ".join(f"{law}, {count}" for law, count in columns)
    lines = [f"| ns per value; threads | {heads} | the same work? |"]
    lines.append("|---" + "|---:" * len(columns) + "|---|")
    for name, same in results["same"].items():
        found = (told.get((name, *column)) for column in columns)
        cells = " | ".join("" if ns is None else f"{ns:.2f}" for ns in found)
        lines.append(f"| {name} | {cells} | {same} |")
    with_ = ", ".join(f"{package} {version}" for package, version in results["versions"].items())
    return [
        *lines,
        "",
        f"`make peers` on {where(results['machine'])}, with {with_}: {results['elements']:,} float32 "
        f"values, median of {results['rounds']} rounds in turns. `zero_` writes as many bytes and "
        "computes nothing. A peer that fills with one thread was given one for each part of the array.",
    ]


def _medians(found: dict[str, dict[str, float]]) -> tuple[float, float, float]:
    """Seconds of the constructor, of fastinit and of touching pages."""
    return found["constructor"]["median"], found["fastinit"]["median"], found["touch"]["median"]


def _times(found: dict[str, dict[str, float]]) -> float:
    theirs, ours, _ = _medians(found)
    return theirs / ours


BLOCKS: dict[str, tuple[Path, Callable[[], list[str]]]] = {
    "headline": (README, headline),
    "materialize": (TABLES, materialize),
    "large": (TABLES, large),
    "scale": (LARGE, scale),
    "results": (TABLES, fills),
    "lsuv": (TABLES, lsuv),
    "instructions": (BACKENDS, instructions),
    "moments": (SEEING, moments),
    "low precision": (LOW, low_precision),
    "watch": (WATCH, watch),
    "digits": (TABLES, digits),
    "versions": (INSTALLING, versions),
    "peers": (TABLES, peers),
}
"""By name the page that a block is on, and what makes its lines."""


def rendered(name: str) -> str:
    """A block of a page between its marks."""
    return "\n".join([f"<!-- {name} -->", *BLOCKS[name][1](), f"<!-- end of {name} -->"])


def main() -> None:
    for name, (page, _) in BLOCKS.items():
        marked = re.compile(rf"<!-- {name} -->.*?<!-- end of {name} -->", re.DOTALL)
        text, found = marked.subn(lambda _, name=name: rendered(name), page.read_text())
        assert found == 1, name
        page.write_text(text)


if __name__ == "__main__":
    main()
