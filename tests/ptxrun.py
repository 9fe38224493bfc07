"""Runs PTX without a GPU: an interpreter, in numpy, of the instructions that our kernels use.

All threads run at once, as arrays; an unknown instruction is an error. Of the basic blocks that
threads stand at, the first in the text runs next, for those threads: divided threads meet again.

What a GPU may let pass raises :class:`Fault` with the line: an access that is not aligned or not
within one buffer, a byte of a buffer written twice, shared memory read before it is written, and two
threads at one byte of shared memory without a barrier between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

Words = Any  # unsigned words or bools, one for each thread or one for all
PARAMETERS = 0x6FFF_1234_5678_0000  # where a kernel's parameters lie
MOST_STEPS = 10_000


class Fault(Exception):
    """What a kernel must not do."""


# --- types -----------------------------------------------------------------------------------------

TYPES: dict[str, Any] = {
    f"{letter}{bits}": np.dtype(f"{kind}{bits // 8}")
    for letter, kind in (("b", "u"), ("u", "u"), ("s", "i"), ("f", "f"))
    for bits in (8, 16, 32, 64)
    if (letter, bits) != ("f", 8)
} | {"pred": np.dtype(bool), "f32x2": np.dtype("u8")}


def unsigned(dtype: Any) -> Any:
    return dtype if dtype.kind == "b" else np.dtype(f"u{dtype.itemsize}")


def typed(words: Words, dtype: Any) -> Any:
    """Words as numbers of a type; of wider words, their low bits."""
    if words.dtype.itemsize != dtype.itemsize:
        words = words.astype(unsigned(dtype))
    return words.view(dtype)


def words(numbers: Any) -> Words:
    return numbers.view(unsigned(numbers.dtype))


def extended(value: Words, dtype: Any, register: Any) -> Words:
    """Words of a type as a register holds them: with the sign, or zeros, before them."""
    if value.dtype.itemsize >= register.itemsize:
        return value
    return words(value.view(dtype).astype(f"{dtype.kind}{register.itemsize}"))


# --- arithmetic ------------------------------------------------------------------------------------


def fma(a: Any, b: Any, c: Any) -> Any:
    """float32 a * b + c with one rounding, as in fastinit/reference.py."""
    product, c = np.multiply(a, b, dtype=np.float64), c.astype(np.float64)
    total = np.atleast_1d(product + c)
    part = total - product
    error = (product - (total - part)) + (c - part)
    bits = total.view(np.int64)
    odd = np.where((error > 0) == (total > 0), bits, bits - 1) | 1
    exact = (error == 0) | ~np.isfinite(total)
    return np.where(exact, total, odd.view(np.float64)).astype(np.float32)


def smaller(a: Any, b: Any) -> Any:
    """The one that is a number; -0 is less than +0."""
    either = np.where((a < b) | np.isnan(b), words(a), words(b))
    return np.where(a == b, words(a) | words(b), either).view(np.float32)


def larger(a: Any, b: Any) -> Any:
    return -smaller(-a, -b)


def divided(a: Any, b: Any) -> Any:
    """Integers, towards zero."""
    if (b == 0).any():
        raise Fault("division by zero")
    quotient = np.floor_divide(a, b)
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(quotient.dtype)


def lookup(a: Any, b: Any, c: Any, table: Any) -> Any:
    terms = [
        (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
        for i in range(8)
        if int(table) >> i & 1
    ]
    return np.bitwise_or.reduce(np.broadcast_arrays(*terms))


def wide(a: Any, b: Any) -> Any:
    double = f"{a.dtype.kind}{2 * a.dtype.itemsize}"
    return a.astype(double) * b.astype(double)


def field(a: Any, position: Any, length: Any) -> Any:
    """A bit field, extended as the type wants it."""
    bits, at, n = 8 * a.dtype.itemsize, int(position), int(length)
    if not 0 < n <= bits - at:
        raise Fault(f"a bit field of {n} bits at {at}")
    return a << a.dtype.type(bits - n - at) >> a.dtype.type(bits - n)


def bfloat16(a: Any) -> Any:
    b = words(a)
    rounded = b + np.uint32(0x7FFF) + (b >> np.uint32(16) & np.uint32(1)) >> np.uint32(16)
    return np.where(np.isnan(a), 0x7FFF, rounded).astype(np.uint16)


def both(low: Any, high: Any) -> Words:
    """Two words as one of twice their width."""
    double = f"u{2 * low.dtype.itemsize}"
    shift = np.array(8 * low.dtype.itemsize, double)[()]
    return low.astype(double) | high.astype(double) << shift


def halves(both: Words) -> tuple[Words, Words]:
    half = f"u{both.dtype.itemsize // 2}"
    return both.astype(half), (both >> both.dtype.type(4 * both.dtype.itemsize)).astype(half)


INTEGERS: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "mul.lo": np.multiply,
    "mul.hi": lambda a, b: wide(a, b) >> np.uint64(32),
    "mul.wide": wide,
    "mad.lo": lambda a, b, c: a * b + c,
    "div": divided,
    "rem": lambda a, b: a - divided(a, b) * b,
    "min": np.minimum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "neg": np.negative,
    "shl": lambda a, n: a << n.astype(a.dtype),
    "shr": lambda a, n: a >> n.astype(a.dtype),
    "bfe": field,
    "lop3": lookup,
    "setp.eq": np.equal,
    "setp.ne": np.not_equal,
    "setp.lt": np.less,
    "setp.le": np.less_equal,
    "setp.gt": np.greater,
    "setp.ge": np.greater_equal,
}
FLOATS: dict[str, Callable[..., Any]] = {
    "add.rn": np.add,
    "sub.rn": np.subtract,
    "mul.rn": np.multiply,
    "fma.rn": fma,
    "sqrt.rn": lambda a: np.sqrt(a.astype(np.float64)).astype(np.float32),
    "min": smaller,
    "max": larger,
    "neg": np.negative,
    "setp.lt": np.less,
    "setp.gt": np.greater,
    "setp.leu": lambda a, b: ~(a > b),  # true of a NaN
    "setp.geu": lambda a, b: ~(a < b),
    "setp.nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
PREDICATES: dict[str, Callable[..., Any]] = {"and": np.logical_and, "or": np.logical_or}
CONVERSIONS: dict[str, Callable[..., Any]] = {
    "rn.f32.s32": lambda a: a.astype(np.float32),
    "rn.f32.u32": lambda a: a.astype(np.float32),
    "f64.f32": lambda a: a.astype(np.float64),
    "rn.f16.f32": lambda a: a.astype(np.float16),
    "rn.f16x2.f32": lambda a, b: both(words(b.astype(np.float16)), words(a.astype(np.float16))),
    "rn.bf16x2.f32": lambda a, b: both(bfloat16(b), bfloat16(a)),
}


def in_pairs(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operation on float32 numbers, for both halves of 64 bits."""

    def run(*arguments: Any) -> Any:
        pairs = (np.atleast_1d(a)[:, None].view(np.float32) for a in arguments)
        return np.ascontiguousarray(function(*pairs)).view(np.uint64)[:, 0]

    return run


def operation(opcode: str) -> tuple[Callable[..., Any], list[Any]] | None:
    """What an instruction computes from its operands, and their types (the last repeats)."""
    name, _, kind = opcode.rpartition(".")
    first, *modifiers = name.split(".")
    dtype = TYPES.get(kind)
    function: Callable[..., Any] | None = None
    types = [dtype]
    if first == "cvt" and opcode[4:] in CONVERSIONS:
        function = CONVERSIONS[opcode[4:]]
    elif dtype is None:
        return None
    elif first == "cvt" and len(modifiers) == 1 and {modifiers[0][0], kind[0]} <= {"u", "s"}:
        to = TYPES[modifiers[0]]
        function = lambda a: a.astype(to)  # noqa: E731
    elif name in ("mov", "cvta.to.global", "cvta.param"):
        function = lambda a: a  # noqa: E731
    elif name == "selp":
        function, types = lambda a, b, p: np.where(p, a, b), [dtype, dtype, TYPES["pred"]]
    elif kind == "pred":
        function = PREDICATES.get(name)
    elif kind == "f32":
        function = FLOATS.get(name)
    elif kind == "f32x2":
        function = in_pairs(FLOATS[name]) if name in FLOATS else None
    elif kind[0] in "bus":
        function = INTEGERS.get(name)
        if first in ("shl", "shr", "bfe"):
            types = [dtype, TYPES["u32"]]
    return (function, types) if function else None


# --- memory ----------------------------------------------------------------------------------------


class Memory:
    """Global memory: buffers at addresses of their own, and nothing between them.

    A buffer with contents can only be read. One without can only be written, each byte once;
    ``width`` tells by how wide a store each was.
    """

    def __init__(self) -> None:
        self.bytes = self.width = np.zeros(0, np.uint8)  # a multiple of 16 of them
        # By address: the size, the place in ``bytes``, and whether it is to be written.
        self.buffers: dict[int, tuple[int, int, bool]] = {}

    def add(self, address: int, contents: bytes | int) -> None:
        written = isinstance(contents, int)
        data = np.full(contents, 0xA5, np.uint8) if written else np.frombuffer(contents, np.uint8)
        # As far from a multiple of 16 as the address: what is aligned there is so here.
        at, size = len(self.bytes) + address % 16, len(data)
        more = -(-(address % 16 + size) // 16) * 16
        self.bytes, self.width = (np.pad(a, (0, more)) for a in (self.bytes, self.width))
        self.bytes[at : at + size] = data
        self.buffers[address] = size, at, written

    def __getitem__(self, address: int) -> bytes:
        size, at, _ = self.buffers[address]
        return self.bytes[at : at + size].tobytes()

    def widths(self, address: int) -> Any:
        size, at, _ = self.buffers[address]
        return self.width[at : at + size]

    def where(self, addresses: Any, size: int, writing: bool) -> Any:
        """The places in ``bytes`` of accesses of ``size`` bytes."""
        starts = np.array(sorted(self.buffers), np.uint64)
        rows = np.array([self.buffers[int(a)] for a in starts], np.int64)
        which = np.searchsorted(starts, addresses, side="right") - 1
        past = (addresses - starts[which]).astype(np.int64)  # wraps below the first: too far
        within = (which >= 0) & (past >= 0) & (past + size <= rows[which, 0])
        for bad, what in (
            (addresses % np.uint64(size) != 0, "not aligned"),
            (~within, "in no buffer"),
            (rows[which, 2] != writing, "to be read only" if writing else "to be written only"),
        ):
            if bad.any():
                raise Fault(f"{size} bytes at {int(addresses[bad][0]):#x}: {what}")
        return rows[which, 1] + past

    def load(self, threads: Threads, addresses: Any, item: Any, count: int) -> list[Words]:
        at = self.where(np.atleast_1d(addresses), item.itemsize * count, False) // item.itemsize
        return [self.bytes.view(item)[at + i] for i in range(count)]

    def store(self, threads: Threads, addresses: Any, values: list[Words]) -> None:
        item = values[0].dtype.itemsize
        size = item * len(values)
        at = self.where(np.broadcast_to(addresses, threads.ids.shape), size, True)
        each = (at[:, None] + np.arange(size)).ravel()
        if self.width[each].any() or len(np.unique(at)) != len(at):
            raise Fault("a byte written twice")
        self.width[each] = size
        for i, value in enumerate(values):
            self.bytes.view(f"u{item}")[at // item + i] = value


class Shared:
    """Shared memory of all thread blocks, and who was last at each byte since which barrier."""

    SEVERAL = -2

    def __init__(self, size: int, blocks: int) -> None:
        self.size, self.epoch = size, np.zeros(blocks, np.int64)
        self.bytes = np.zeros(-(-size // 16) * 16 * blocks, np.uint8)
        self.writer, self.written, self.reader, self.read = np.full((4, len(self.bytes)), -1)

    def where(self, threads: Threads, addresses: Any, size: int) -> tuple[Any, Any, Any, Any]:
        """Places in ``bytes``; then of each byte the place, the thread, and the barriers so far."""
        addresses = np.broadcast_to(addresses, threads.ids.shape).astype(np.int64)
        if ((addresses % size != 0) | (addresses < 0) | (addresses + size > self.size)).any():
            raise Fault(f"{size} bytes of shared memory: not aligned, or behind its end")
        at = threads.blocks * (-(-self.size // 16) * 16) + addresses
        each = (at[:, None] + np.arange(size)).ravel()
        who, now = np.repeat(threads.ids, size), np.repeat(self.epoch[threads.blocks], size)
        return at, each, who, now

    def load(self, threads: Threads, addresses: Any, item: Any, count: int) -> list[Words]:
        at, each, who, now = self.where(threads, addresses, item.itemsize * count)
        if (self.writer[each] < 0).any():
            raise Fault("shared memory read before it is written")
        self._meets(self.writer, self.written, each, who, now)
        first = (self.read[each] != now) | (self.reader[each] == who)
        self.reader[each] = np.where(first, who, self.SEVERAL)
        self.reader[each[self.reader[each] != who]] = self.SEVERAL
        self.read[each] = now
        return [self.bytes.view(item)[at // item.itemsize + i] for i in range(count)]

    def store(self, threads: Threads, addresses: Any, values: list[Words]) -> None:
        item = values[0].dtype.itemsize
        at, each, who, now = self.where(threads, addresses, item * len(values))
        self._meets(self.writer, self.written, each, who, now)
        self._meets(self.reader, self.read, each, who, now)
        self.writer[each], self.written[each] = who, now
        if (self.writer[each] != who).any():
            raise Fault("two threads write the same shared memory")
        for i, value in enumerate(values):
            self.bytes.view(f"u{item}")[at // item + i] = value

    def _meets(self, others: Any, when: Any, each: Any, who: Any, now: Any) -> None:
        if ((when[each] == now) & (others[each] != who)).any():
            raise Fault("two threads at the same shared memory, and no barrier between them")


# --- text ------------------------------------------------------------------------------------------


class Instruction(NamedTuple):
    line: int
    text: str
    outs: list[str | None]  # registers
    ins: list[Any]  # registers, special registers, or words
    run: Callable[..., Any]

    def fault(self, error: Exception | str) -> Fault:
        return Fault(f"line {self.line}, {self.text!r}: {error}")


class Block(NamedTuple):
    """Instructions that run from the first to the last, and where to go then."""

    code: list[Instruction]
    end: str  # "next", "bra", "bar" or "ret"
    guard: Any = None  # of a branch: the predicate, and whether it is negated
    target: str = ""


STATEMENT = re.compile(r"\s*(?:(\{)|(\})|([$\w]+)\s*:(?!:)|([^;{]*(?:\{[^}]*\}[^;{]*)*);)")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
MOVES = re.compile(r"(ld|st)(\.param|\.global|\.shared)?(?:\.v([24]))?\.([busf]\d+)$")


class Program:
    """One entry of a PTX text, decoded."""

    def __init__(self, text: str, entry: str) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        text = re.sub(r"(?m)^\s*\.loc\b.*$", "", text)
        head = re.search(rf"\.entry\s+(\w*{entry}\w*)\s*\(([^)]*)\)[^{{]*\{{", text)
        if head is None:
            raise Fault(f"there is no entry {entry}")
        self.symbols: dict[str, Any] = {}
        self.parameters: list[tuple[int, str, int]] = []  # where, type, size
        self._lay_out(head[2], text)
        self.registers: dict[str, Any] = {}
        self.scopes: list[dict[str, str]] = [{}]
        self.blocks: list[Block] = []
        self.labels: dict[str, int] = {}
        self._code: list[Instruction] = []
        self._read(text, head.end())
        self.kept = self._kept()

    def _lay_out(self, parameters: str, text: str) -> None:
        """Addresses of the parameters and of what is declared in shared memory."""
        end = 0
        declared = r"\.param(?:\s+\.align\s+(\d+))?\s+\.(\w+)[^,]*?(\w+)(?:\[(\d+)\])?\s*(?:,|$)"
        for align, kind, name, count in re.findall(declared, parameters):
            item = TYPES[kind].itemsize
            size = item * int(count or 1)
            end += -end % int(align or item)
            self.symbols[name] = np.uint64(PARAMETERS + end)
            self.parameters.append((end, kind, size))
            end += size
        self.parameter_bytes, self.shared = end, 0
        declared = r"\.shared\s+\.align\s+(\d+)\s+\.b8\s+(\w+)\[(\d*)\]"
        for align, name, count in re.findall(declared, text):
            self.shared += -self.shared % int(align)
            self.symbols[name] = np.uint64(self.shared)
            self.shared += int(count or 0)  # without a size: what the launch says, at the end

    def _read(self, text: str, at: int) -> None:
        line, counted = 1, 0
        while self.scopes:
            found = STATEMENT.match(text, at)
            if not found:
                raise Fault(f"not understood: {text[at : at + 80]!r}")
            opened, closed, label, statement = found.groups()
            if opened:
                self.scopes.append({})
            elif closed:
                self.scopes.pop()
            elif label:
                self._end("next")
                self.labels[label] = len(self.blocks)
            else:
                start = found.start(4)
                line, counted = line + text.count("\n", counted, start), start
                self._statement(line, " ".join(statement.split()))
            at = found.end()
        self._end("ret")

    def _end(self, end: str, guard: Any = None, target: str = "") -> None:
        self.blocks.append(Block(self._code, end, guard, target))
        self._code = []

    def _statement(self, line: int, text: str) -> None:
        if text.startswith(".reg"):
            self._declare(text)
            return
        if text.startswith((".pragma", ".shared")):
            return
        guard, _, rest = text.partition(" ") if text[0] == "@" else ("", "", text)
        opcode, _, operands = rest.partition(" ")
        condition = None
        if guard:
            negated = guard[1] == "!"
            condition = (self._register(guard[1 + negated :]), negated)
        try:
            if opcode in ("bra", "bra.uni"):
                self._end("bra", condition, operands)
                return
            if condition:  # around it, as if it were written so
                after = f"{line}:{len(self.blocks)}"
                self._end("bra", (condition[0], not condition[1]), after)
            if opcode == "ret" or (opcode, operands) == ("bar.sync", "0"):
                self._end(opcode[:3])
            else:
                self._code.append(self._decode(line, text, opcode, OPERAND.findall(operands)))
            if condition:
                self._end("next")
                self.labels[after] = len(self.blocks)
        except (Fault, KeyError, ValueError) as error:
            raise Fault(f"line {line}, {text!r}: {error}") from error

    def _declare(self, text: str) -> None:
        kind, names = re.match(r"\.reg\s+\.(\w+)\s+(.*)", text).groups()  # type: ignore[union-attr]
        for name in re.split(r"[,\s]+", names):
            name = re.sub(r"<\d+>$", "#", name)  # %r<9>: %r0 to %r8
            self.scopes[-1][name] = unique = f"{name}@{len(self.registers)}"
            self.registers[unique] = unsigned(TYPES[kind])

    def _register(self, name: str) -> str:
        for scope in reversed(self.scopes):
            for declared in (name, re.sub(r"\d+$", "#", name)):
                if declared in scope:
                    unique = scope[declared].replace("#", name[len(declared) - 1 :])
                    self.registers[unique] = self.registers[scope[declared]]
                    return unique
        raise Fault(f"no register {name}")

    def _value(self, text: str, dtype: Any) -> Any:
        if text in ("%tid.x", "%ctaid.x", "%ntid.x", "%nctaid.x"):
            return text
        if text in self.symbols:
            return self.symbols[text].astype(unsigned(dtype))
        if found := re.match(r"0[fd]([0-9a-fA-F]+)$", text):
            return unsigned(dtype).type(int(found[1], 16))
        if re.match(r"-?(\d|0x)", text):
            return np.array(int(text, 0) & (1 << 8 * dtype.itemsize) - 1, unsigned(dtype))[()]
        return self._register(text)

    def _values(self, text: str, dtype: Any) -> list[Any]:
        names = text.strip("{}").split(",")
        return [self._value(n.strip(), dtype) if n.strip() != "_" else None for n in names]

    def _decode(self, line: int, text: str, opcode: str, operands: list[str]) -> Instruction:
        if move := MOVES.match(opcode):
            return self._move(line, text, opcode, operands, *move.groups())
        if opcode.startswith("mov.b") and "{" in "".join(operands):
            to, of = operands
            whole = TYPES[opcode[4:]]
            half = np.dtype(f"u{whole.itemsize // 2}")
            ins = self._values(of, half if of[0] == "{" else whole)
            run = both if of[0] == "{" else halves
            return Instruction(line, text, self._values(to, whole), ins, run)
        found = operation(opcode)
        if found is None:
            raise Fault("unknown instruction")
        function, types = found
        source = TYPES[opcode.rpartition(".")[2]]
        types = [t or source for t in types]
        types += types[-1:] * (len(operands) - 1 - len(types))
        ins = [self._value(o, t) for o, t in zip(operands[1:], types)]
        out = self._register(operands[0])
        register = self.registers[out]

        def run(*arguments: Any) -> Any:
            result = function(*map(typed, arguments, types))
            return extended(words(result), result.dtype, register)

        return Instruction(line, text, [out], ins, run)

    def _move(
        self, line: int, text: str, opcode: str, operands: list[str], *parts: str
    ) -> Instruction:
        what, space, _, kind = parts
        dtype = TYPES[kind]
        address, data = operands[::-1] if what == "ld" else operands
        base, _, offset = address.strip("[]").replace(" ", "").partition("+")
        start, more = self._value(base, np.dtype("u8")), np.uint64(int(offset or 0) % 2**64)
        values = self._values(data, dtype)
        if space == ".param":
            space = ".global"

        def load(threads: Threads, base: Any) -> Any:
            memory = threads.memory[space or ".global"]
            got = memory.load(threads, base.astype(np.uint64) + more, unsigned(dtype), len(values))
            got = [extended(v, dtype, self.registers[r]) for v, r in zip(got, values)]
            return tuple(got) if len(got) > 1 else got[0]

        def store(threads: Threads, base: Any, *values: Any) -> Any:
            memory = threads.memory[space or ".global"]
            stored = [typed(v, unsigned(dtype)) for v in values]
            memory.store(threads, base.astype(np.uint64) + more, stored)

        if what == "ld":
            return Instruction(line, text, values, ["threads", start], load)
        return Instruction(line, text, [], ["threads", start, *values], store)

    def _kept(self) -> set[str]:
        """Registers that a block reads and did not write before: they live on between blocks."""
        kept = set()
        for block in self.blocks:
            written: set[str | None] = set()
            for one in block.code:
                kept |= {r for r in one.ins if isinstance(r, str) and r not in written}
                written |= set(one.outs)
            if block.guard and block.guard[0] not in written:
                kept.add(block.guard[0])
        return kept


# --- running ---------------------------------------------------------------------------------------


class Threads(NamedTuple):
    """The threads that run a block now."""

    ids: Any
    blocks: Any  # their thread blocks, from 0 on
    memory: dict[str, Any]


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
        self.program, self.grid, self.size, self.some = program, grid, threads, some or range(grid)
        self.shared = Shared(program.shared + shared, len(self.some))
        self.memory = {".global": memory, ".shared": self.shared}
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

    def run(self) -> None:
        for _ in range(MOST_STEPS):
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
        self.shared.epoch += waiting[:, 0] > self.stop
        self.at -= np.where(self.at > self.stop, self.stop, 0)

    def _run(self, index: int, active: Any) -> None:
        block = self.program.blocks[index]
        threads = Threads(active, active // self.size, self.memory)
        now: dict[str, Any] = {
            "threads": threads,
            "%tid.x": (active % self.size).astype(np.uint32),
            "%ctaid.x": (threads.blocks + self.some.start).astype(np.uint32),
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
            if len(one.outs) == 1:
                now[one.outs[0]] = result
            elif one.outs:
                now.update(zip(one.outs, result))
        for name in now.keys() & self.program.kept & self.program.registers.keys():
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
) -> None:
    """Runs a kernel of ``grid`` thread blocks, or only ``some`` of them.

    Arguments are ints, floats, and bytes of what is passed by value.
    """
    with np.errstate(all="ignore"):
        Launch(program, memory, arguments, grid, threads, some, shared).run()
