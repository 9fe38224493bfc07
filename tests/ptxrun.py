"""Runs PTX without a GPU: an interpreter, in numpy, of the instructions that our kernels use.

All threads run at once, as arrays; an unknown instruction is an error. Of the basic blocks that
threads stand at, the first in the text runs next, for those threads: divided threads meet again.

What a GPU may let pass raises :class:`Fault` with the line: an access that is not aligned or not
within one buffer, a byte of a buffer written twice, shared or scratch memory read before it is
written, two threads at one byte of these without a barrier between them, and a shuffle without some
lanes of its mask.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ptx_memory import Memory, Shared
from ptx_operations import TYPES, Fault
from ptx_text import PARAMETERS, Block, Program
from ptx_threads import Threads

MOST_STEPS = 10_000


class Launch:
    """A kernel on its way: where each thread stands, and the registers that it keeps."""

    def __init__(
        self,
        program: Program,
        memory: Memory,
        arguments: Sequence[Any],
        grid: int,
        threads: int,
        some: range | None,
        shared: int,
    ) -> None:
        if threads > program.most_threads:
            raise Fault(f"{threads} threads, but .maxntid is {program.most_threads}")
        self.program, self.grid, self.size, self.some = program, grid, threads, some or range(grid)
        self.shared = Shared(program.shared + shared, len(self.some))
        self.barriers = np.zeros(len(self.some), np.int64)  # that each thread block has passed
        self.memory = {".global": memory, ".shared": self.shared}
        memory.watch.forget()
        memory.add(PARAMETERS, self._pack(arguments))
        self.count = threads * len(self.some)
        self.kept: dict[str, Any] = {}
        self.at = np.zeros(self.count, np.int64)  # the block that each thread stands at
        self.stop = len(program.blocks)  # done; more than that: at the barrier before a block

    def _pack(self, arguments: Sequence[Any]) -> bytes:
        packed = bytearray(self.program.parameter_bytes)
        if len(arguments) != len(self.program.parameters):
            raise Fault(f"{len(self.program.parameters)} parameters, {len(arguments)} arguments")
        for value, (at, kind, size) in zip(arguments, self.program.parameters):
            if isinstance(value, float):
                value = np.array(value, TYPES[kind]).tobytes()
            elif isinstance(value, int):
                value = (value % (1 << 8 * size)).to_bytes(size, "little")
            if len(value) != size:
                raise Fault(f"{len(value)} bytes for a parameter of {size}")
            packed[at : at + size] = value
        return bytes(packed)

    def run(self, steps: int) -> None:
        for _ in range(steps):
            block = int(self.at.min())
            if block < self.stop:
                self._run(block, np.flatnonzero(self.at == block))
            elif (self.at == self.stop).all():
                return
            else:
                self._pass_barrier()
        raise Fault("it does not end")

    def _pass_barrier(self) -> None:
        """No thread can go on: all of a thread block wait at one barrier, or are done."""
        waiting = self.at.reshape(-1, self.size)
        if (waiting != waiting[:, :1]).any():
            raise Fault("threads wait at a barrier that others of their block do not come to")
        self.barriers += waiting[:, 0] > self.stop
        self.at -= np.where(self.at > self.stop, self.stop, 0)

    def _run(self, index: int, active: Any) -> None:
        block = self.program.blocks[index]
        blocks = active // self.size
        places = active % self.size
        threads = Threads(active, places, blocks, self.barriers[blocks], self.memory)
        now: dict[str, Any] = {
            "threads": threads,
            "%tid.x": places.astype(np.uint32),
            "%ctaid.x": (blocks + self.some.start).astype(np.uint32),
            "%ntid.x": np.uint32(self.size),
            "%nctaid.x": np.uint32(self.grid),
        }

        def value(source: Any) -> Any:
            if not isinstance(source, str):
                return source
            if source not in now:
                if source not in self.kept:
                    raise Fault(f"{source} is read before it is written")
                now[source] = self.kept[source][active]
            return now[source]

        for one in block.code:
            try:
                result = one.run(*[value(source) for source in one.ins])
            except Fault as error:
                raise one.fault(error) from None
            results = [result] if len(one.outs) == 1 else result or ()
            now.update((out, words) for out, words in zip(one.outs, results) if out)
        for name in self.program.kept[index]:
            if name not in self.kept:
                self.kept[name] = np.zeros(self.count, self.program.registers[name])
            self.kept[name][active] = now[name]
        self._leave(index, block, active, value)

    def _leave(self, index: int, block: Block, active: Any, value: Callable[[Any], Any]) -> None:
        to: Any = index + 1
        if block.end == "bra":
            to = self.program.labels[block.target]
            if block.guard:
                to = np.where(value(block.guard[0]) ^ block.guard[1], to, index + 1)
        elif block.end == "bar":
            to = self.stop + index + 1
        elif block.end == "ret":
            to = self.stop
        self.at[active] = to


def launch(
    program: Program,
    memory: Memory,
    arguments: Sequence[Any],
    grid: int,
    threads: int,
    some: range | None = None,
    shared: int = 0,
    steps: int = MOST_STEPS,
) -> None:
    """Runs a kernel of ``grid`` thread blocks, or only ``some`` of them.

    Arguments are ints, floats, and bytes of what is passed by value. A kernel that has not ended
    after so many ``steps``, each a basic block for some threads, is taken to run for ever.
    """
    with np.errstate(all="ignore"):
        Launch(program, memory, arguments, grid, threads, some, shared).run(steps)
