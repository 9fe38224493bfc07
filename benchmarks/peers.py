"""Other generators of random numbers, beside fastinit: ``make peers``, in an environment of its own.

    python -m benchmarks.peers --threads 1 2 --out benchmarks/results/peers.json

One process for each number of threads, which may run on as many cores and no more. In it all take turns,
on as many float32 elements, with the memory that freed results leave (glibc is told to keep it): nobody
pays for fresh pages. A generator that fills with one thread is given one for each part of the array, as
NumPy's documentation does it: its values depend on how many there are.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

LAWS = ("uniform", "normal", "trunc ±2σ")
KEEPS_MEMORY = {f"MALLOC_{name}_": str(1 << 40) for name in ("MMAP_THRESHOLD", "TRIM_THRESHOLD")}

Fills = dict[str, Callable[[], object]]


class Peer(NamedTuple):
    """A generator: the package that has it, what makes its fills, and what the work is beside ours."""

    name: str
    package: str
    fills: Callable[[int, int], Fills]
    same: str


def ours(elements: int, threads: int) -> Fills:
    import torch

    from fastinit import init

    out = torch.empty(elements)
    return {
        "uniform": lambda: init.uniform_(out, seed=0),
        "normal": lambda: init.normal_(out, seed=0),
        "trunc ±2σ": lambda: init.trunc_normal_(out, seed=0),
    }


def torch_init(elements: int, threads: int) -> Fills:
    import torch

    out = torch.empty(elements)
    peer = torch.nn.init
    return {
        "uniform": lambda: peer.uniform_(out),
        "normal": lambda: peer.normal_(out),
        "trunc ±2σ": lambda: peer.trunc_normal_(out),
    }


def numpy_(name: str) -> Callable[[int, int], Fills]:
    return lambda elements, threads: _generators(elements, threads, _numpy_bits(name, threads))


def randomgen(name: str, **kind: int) -> Callable[[int, int], Fills]:
    def fills(elements: int, threads: int) -> Fills:
        import randomgen

        bits = [getattr(randomgen, name)(seed, **kind) for seed in range(threads)]
        return _generators(elements, threads, bits)

    return fills


def _numpy_bits(name: str, threads: int) -> list[Any]:
    import numpy as np

    seeds = np.random.SeedSequence(0).spawn(threads)
    return [getattr(np.random, name)(seed) for seed in seeds]


def _generators(elements: int, threads: int, bits: list[Any]) -> Fills:
    """NumPy's Generator for each thread, on its part of one array."""
    import numpy as np

    parts = np.array_split(np.empty(elements, dtype=np.float32), threads)
    generators = [np.random.Generator(each) for each in bits]

    def uniform(generator: np.random.Generator, out: Any) -> object:
        return generator.random(out=out, dtype=out.dtype)

    def normal(generator: np.random.Generator, out: Any) -> object:
        return generator.standard_normal(out=out, dtype=out.dtype)

    return {
        "uniform": _in_threads(uniform, generators, parts),
        "normal": _in_threads(normal, generators, parts),
    }


def mkl(name: str) -> Callable[[int, int], Fills]:
    def fills(elements: int, threads: int) -> Fills:
        import mkl_random

        states = [mkl_random.MKLRandomState(seed, brng=name) for seed in range(threads)]
        sizes = [elements // threads] * threads
        return {
            "uniform": _in_threads(lambda state, n: state.random_sample(n), states, sizes),
            "normal": _in_threads(lambda state, n: state.standard_normal(n), states, sizes),
        }

    return fills


def _in_threads(
    call: Callable[[Any, Any], object], generators: list[Any], parts: list[Any]
) -> Callable[[], object]:
    if len(generators) == 1:
        return lambda: call(generators[0], parts[0])
    pool = ThreadPoolExecutor(len(generators))
    return lambda: list(pool.map(call, generators, parts))


def jax_(name: str) -> Callable[[int, int], Fills]:
    def fills(elements: int, threads: int) -> Fills:
        import jax

        key = jax.random.key(0, impl=name)

        def compiled(law: Callable[[Any], Any]) -> Callable[[], object]:
            run = jax.jit(law)
            return lambda: run(key).block_until_ready()

        return {
            "uniform": compiled(lambda k: jax.random.uniform(k, (elements,))),
            "normal": compiled(lambda k: jax.random.normal(k, (elements,))),
            "trunc ±2σ": compiled(lambda k: jax.random.truncated_normal(k, -2, 2, (elements,))),
        }

    return fills


PEERS = (
    Peer("fastinit", "torch", ours, "Philox4x32-10, 32 bits for each number; Box–Muller"),
    Peer(
        "torch.nn.init",
        "torch",
        torch_init,
        "no: one sequence of MT19937, which one thread draws; the truncated law by erfinv in float32",
    ),
    Peer(
        "NumPy, SFC64",
        "numpy",
        numpy_("SFC64"),
        "no: the cheapest sequence there is; normals by ziggurat, whose number of draws varies",
    ),
    Peer(
        "NumPy, Philox",
        "numpy",
        numpy_("Philox"),
        "nearly: Philox4x64-10 of a counter, but normals by ziggurat: no value has an index",
    ),
    Peer(
        "randomgen, Philox4x32",
        "randomgen",
        randomgen("Philox", number=4, width=32),
        "nearly: the same Philox; normals by NumPy's ziggurat",
    ),
    Peer(
        "randomgen, AES",
        "randomgen",
        randomgen("AESCounter"),
        "no: a counter through the CPU's AES instructions, which GPUs lack; ziggurat",
    ),
    Peer(
        "JAX, threefry",
        "jax",
        jax_("threefry2x32"),
        "yes, by another function of the counter, Threefry2x32-20; normals by erfinv of 23 bits. "
        "Its result is a new array",
    ),
    Peer(
        "JAX, rbg",
        "jax",
        jax_("rbg"),
        "nearly: XLA's own Philox4x32-10, whose bits depend on the device and XLA's version; erfinv of "
        "23 bits. Its result is a new array",
    ),
    Peer(
        "oneMKL, Philox",
        "mkl_random",
        mkl("PHILOX4X32X10"),
        "no: the same Philox, normals by inverse CDF, but in float64 only, twice the bytes, and into a "
        "new array",
    ),
    Peer("oneMKL, ARS5", "mkl_random", mkl("ARS5"), "no: five rounds of AES; float64, as above"),
)

ABSENT = {
    "torch.func._random": "yes: stateless Philox4x32-10 and Box–Muller. Not timed: in torch 2.13 it is "
    "private and has CUDA kernels only",
    "EigenRand": "SIMD code for Eigen, in C++. Not timed: no package index has it",
}


def measured(threads: int, elements: int, rounds: int) -> Iterator[dict[str, Any]]:
    """In a process that has as many cores: all generators of a law in turns."""
    import torch

    from benchmarks.timing import race

    torch.set_num_threads(threads)
    fills = {peer.name: peer.fills(elements, threads) for peer in PEERS}
    written = torch.empty(elements)
    for law in LAWS:
        contenders = {name: has[law] for name, has in fills.items() if law in has}
        for name, timing in race({**contenders, "zero_": written.zero_}, rounds).items():
            each = timing.median / elements * 1e9
            yield {
                "peer": name,
                "law": law,
                "threads": threads,
                "ns": each,
                "spread": timing.spread,
            }


def alone(threads: int, elements: int, rounds: int) -> list[dict[str, Any]]:
    """:func:`measured` in a process of its own, on the first cores that this one may use."""
    cores = sorted(os.sched_getaffinity(0))[:threads]
    if len(cores) < threads:
        sys.exit(f"--threads {threads}: this process may run on {len(cores)} only")
    code = "import json, sys; from benchmarks import peers; "
    code += "print(json.dumps(list(peers.measured(*map(int, sys.argv[1:])))))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(threads), str(elements), str(rounds)],
        env={**os.environ, **KEEPS_MEMORY, "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": "1"},
        preexec_fn=lambda: os.sched_setaffinity(0, cores),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    records: list[dict[str, Any]] = json.loads(done.stdout)
    return records


def main() -> None:
    from benchmarks.timing import machine

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--elements", type=int, default=1 << 26)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file")
    asked = parser.parse_args()
    records = []
    for threads in asked.threads:
        records += alone(threads, asked.elements, asked.rounds)
        for record in records:
            if record["threads"] == threads:
                print(f"{record['peer']:24}{record['law']:12}{threads:3}{record['ns']:8.3f} ns")
    if asked.out is not None:
        results = {
            "machine": machine(),
            "versions": {peer.package: metadata.version(peer.package) for peer in PEERS},
            "same": {**{peer.name: peer.same for peer in PEERS}, "zero_": "no", **ABSENT},
            "elements": asked.elements,
            "rounds": asked.rounds,
            "records": records,
        }
        asked.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
