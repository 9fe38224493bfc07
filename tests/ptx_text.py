"""A PTX text, decoded into basic blocks of instructions that ptxrun.py runs."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from ptx_operations import TYPES, Fault, both, extended, halves, operation, typed, unsigned, words
from ptx_threads import Threads, shuffled

PARAMETERS = 0x6FFF_1234_5678_0000  # where a kernel's parameters lie


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

    def unwritten(self) -> set[str]:
        """Registers that it reads and did not write before."""
        read: set[str] = set()
        written: set[str | None] = set()
        for one in self.code:
            read |= {r for r in one.ins if isinstance(r, str) and r not in written}
            written |= set(one.outs)
        if self.guard and self.guard[0] not in written:
            read.add(self.guard[0])
        return read


STATEMENT = re.compile(r"\s*(?:(\{)|(\})|([$\w]+)\s*:(?!:)|([^;{]*(?:\{[^}]*\}[^;{]*)*);)")
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+")
ADDS = re.compile(r"(?:atom|red)(\.global|\.shared)?\.add\.(u32|u64)$")
FUNCTION = re.compile(r"\.func\s*(?:\(([^)]*)\))?\s*(\w+)\s*\(([^)]*)\)[^{;]*\{")
CALL = re.compile(r"(?:\((.*?)\), )?(\w+), \((.*?)\)$")
MOVES = re.compile(r"(ld|st)(\.param|\.global|\.shared)?(?:\.v([24]))?\.([busf]\d+)$")


class Inlined(NamedTuple):
    """A call: the function is read as if its text stood there, and its number tells its labels apart."""

    number: int
    name: str

    @property
    def after(self) -> str:
        return f"{self.number} after"


class Program:
    """One entry of a PTX text, decoded. What it calls is read anew at each call."""

    def __init__(self, text: str, entry: str) -> None:
        text = re.sub(r"//[^\n]*", "", text)
        self.text = text = re.sub(r"(?m)^\s*\.loc\b.*$", "", text)
        self.functions = {found[2]: found for found in FUNCTION.finditer(text)}
        head = re.search(rf"\.entry\s+(\w*{entry}\w*)\s*\(([^)]*)\)([^{{]*)\{{", text)
        if head is None:
            raise Fault(f"there is no entry {entry}")
        most = re.search(r"\.(?:max|req)ntid\s+(\d+)", head[3])
        self.most_threads = int(most[1]) if most else 1024
        self.symbols: dict[str, Any] = {}
        self.parameters: list[tuple[int, str, int]] = []  # where, type, size
        others = re.split(r"\.entry\b", text[head.end() :])[0], re.split(r"\.entry\b", text)[0]
        self._lay_out(head[2], "".join(others))
        self.registers: dict[str, Any] = {}
        self.passed: set[str] = set()  # of these, what functions are given and give back
        self.scopes: list[dict[str, str]] = [{}]
        self.blocks: list[Block] = []
        self.labels: dict[str, int] = {}
        self.calls = [Inlined(0, head[1])]  # that the text is in, the last one innermost
        self._inlined = 0
        self._code: list[Instruction] = []
        self._read(head.end())
        self._end("ret")
        kept = set().union(*(block.unwritten() for block in self.blocks))
        # Of each block, what lives on behind it.
        self.kept = [
            sorted({r for one in block.code for r in one.outs if r in kept})
            for block in self.blocks
        ]

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

    def _read(self, at: int) -> None:
        """To the end of the innermost scope."""
        line, counted, depth = 1, 0, len(self.scopes)
        while len(self.scopes) >= depth:
            found = STATEMENT.match(self.text, at)
            if not found:
                raise Fault(f"not understood: {self.text[at : at + 80]!r}")
            opened, closed, label, statement = found.groups()
            if opened:
                self.scopes.append({})
            elif closed:
                self.scopes.pop()
            elif label:
                self._end("next")
                self.labels[self._label(label)] = len(self.blocks)
            else:
                start = found.start(4)
                line, counted = line + self.text.count("\n", counted, start), start
                self._statement(line, " ".join(statement.split()))
            at = found.end()

    def _label(self, name: str) -> str:
        return f"{self.calls[-1].number} {name}"

    def _end(self, end: str, guard: Any = None, target: str = "") -> None:
        self.blocks.append(Block(self._code, end, guard, target))
        self._code = []

    def _statement(self, line: int, text: str) -> None:
        if text.startswith((".reg", ".param")):
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
                self._end("bra", condition, self._label(operands))
                return
            if condition:  # around it, as if it were written so
                after = f"{line}:{len(self.blocks)}"
                self._end("bra", (condition[0], not condition[1]), after)
            if opcode == "ret" and len(self.calls) > 1:
                self._end("bra", None, self.calls[-1].after)
            elif opcode == "ret" or (opcode, operands) == ("bar.sync", "0"):
                self._end(opcode[:3])
            elif opcode in ("call", "call.uni"):
                self._call(operands)
            else:
                self._code.append(self._decode(line, text, opcode, OPERAND.findall(operands)))
            if condition:
                self._end("next")
                self.labels[after] = len(self.blocks)
        except (Fault, KeyError, ValueError) as error:
            raise Fault(f"line {line}, {text!r}: {error}") from error

    def _call(self, operands: str) -> None:
        """The function's text, in which what it is given and gives back are the caller's."""
        found = CALL.match(operands)
        if found is None or found[2] not in self.functions:
            raise Fault("no such function in the text")
        function = self.functions[found[2]]
        if found[2] in (call.name for call in self.calls):
            raise Fault("a function that calls itself")
        scope = {}
        for theirs, ours in ((found[1], function[1]), (found[3], function[3])):
            given = [name.strip() for name in (theirs or "").split(",") if name.strip()]
            named = re.findall(r"(\w+)\s*(?:,|$)", (ours or "").strip())
            if len(given) != len(named):
                raise Fault(f"{len(given)} arguments for {len(named)}")
            scope.update(zip(named, map(self._register, given)))
        self._inlined += 1
        self.calls.append(Inlined(self._inlined, found[2]))
        scopes, self.scopes = self.scopes, [scope]
        self._read(function.end())
        self.scopes = scopes
        self._end("next")
        self.labels[self.calls.pop().after] = len(self.blocks)

    def _declare(self, text: str) -> None:
        """Registers, or what a call is given or gives back: registers as well, of one call."""
        found = re.match(r"\.(reg|param)\s+\.(\w+)\s+([^\[]*)$", text)
        if found is None:
            raise Fault(f"not understood: {text!r}")
        what, kind, names = found.groups()
        for name in re.split(r"[,\s]+", names):
            name = re.sub(r"<\d+>$", "#", name)  # %r<9>: %r0 to %r8
            self.scopes[-1][name] = unique = f"{name}@{len(self.registers)}"
            self.registers[unique] = unsigned(TYPES[kind])
            if what == "param":
                self.passed.add(unique)

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
        if adds := ADDS.match(opcode):
            return self._add(line, text, operands, *adds.groups())
        if opcode == "shfl.sync.bfly.b32":
            return self._shuffle(line, text, operands)
        if opcode.startswith("mov.b") and "{" in "".join(operands):
            to, of = operands
            whole = TYPES[opcode[4:]]
            half = np.dtype(f"u{whole.itemsize // 2}")
            ins = self._values(of, half if of[0] == "{" else whole)
            split = both if of[0] == "{" else halves
            return Instruction(line, text, self._values(to, whole), ins, split)
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

    def _shuffle(self, line: int, text: str, operands: list[str]) -> Instruction:
        outs: list[str | None] = [self._register(name) for name in operands[0].split("|")]
        ins = [self._value(o, TYPES["b32"]) for o in operands[1:]]
        one = shuffled if len(outs) == 2 else lambda *of: shuffled(*of)[0]
        return Instruction(line, text, outs, ["threads", *ins], one)

    def _pass(
        self,
        line: int,
        text: str,
        what: str,
        passed: str,
        more: int,
        values: list[Any],
        dtype: Any,
    ) -> Instruction:
        """Gives a function what it is called with, or back; or takes it."""
        if more or len(values) > 1 or self.registers[passed].itemsize != dtype.itemsize:
            raise Fault("a part of a parameter")
        source, to = (passed, values[0]) if what == "ld" else (values[0], passed)

        def run(value: Any) -> Any:
            return extended(typed(value, unsigned(dtype)), dtype, self.registers[to])

        return Instruction(line, text, [to], [source], run)

    def _place(self, address: str) -> tuple[Any, Any]:
        base, _, offset = address.strip("[]").replace(" ", "").partition("+")
        return self._value(base, np.dtype("u8")), np.uint64(int(offset or 0) % 2**64)

    def _add(self, line: int, text: str, operands: list[str], *parts: str) -> Instruction:
        """What was there before is nobody's to know: threads come in any order."""
        space, kind = parts
        start, more = self._place(operands[-2])

        def run(threads: Threads, base: Any, value: Any) -> Any:
            memory = threads.memory[space or ".global"]
            memory.sum(threads, base.astype(np.uint64) + more, typed(value, TYPES[kind]))

        ins = ["threads", start, self._value(operands[-1], TYPES[kind])]
        return Instruction(line, text, [], ins, run)

    def _move(
        self, line: int, text: str, opcode: str, operands: list[str], *parts: str
    ) -> Instruction:
        what, space, _, kind = parts
        dtype = TYPES[kind]
        address, data = operands[::-1] if what == "ld" else operands
        start, more = self._place(address)
        values = self._values(data, dtype)
        if space == ".param":
            if isinstance(start, str) and start in self.passed:
                return self._pass(line, text, what, start, int(more), values, dtype)
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
