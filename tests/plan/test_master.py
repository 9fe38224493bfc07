"""Master weights: what the plan gives float32 parameters, where an optimizer keeps it, and no copy."""

from __future__ import annotations

import copy
import subprocess
import sys
from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import fastinit
from fastinit import Fill, Part, Plan
from fastinit.stream.rounding import rounded

FILLS = {
    "normal": Fill.normal(0.1, 0.5),
    "truncated": Fill.truncated_normal(0.0, 0.02, -0.04, 0.04),
    "steps": Fill.normal().then("exp").scaled(0.3),
    "part": Fill.normal().with_part(torch.empty(8, 16, device="meta")[2], Fill.constant(0.0)),
    "orthogonal": Fill.orthogonal().scaled(0.3),
    "sparse": Fill.sparse(0.25),
    "constant": Fill.constant(0.1),
}
PLAN = Plan(FILLS, seed=7, aliases={"tied": "normal"})


def model(dtype: torch.dtype, plan: Plan = PLAN) -> dict[str, Tensor]:
    """What the plan gives parameters of a dtype."""
    made = nn.ParameterDict({n: nn.Parameter(torch.empty(8, 16, dtype=dtype)) for n in FILLS})
    made["tied"] = made["normal"]
    return {n: p.detach() for n, p in plan.apply_(made).items()}


def blank(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {name: torch.full((8, 16), 7.0, dtype=dtype) for name in FILLS}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn], ids=str)
def test_a_parameter_is_its_master_rounded(dtype: torch.dtype) -> None:
    masters = fastinit.master_(blank(), PLAN)
    float32, low = model(torch.float32), model(dtype)
    for name, master in masters.items():
        assert torch.equal(master, float32[name]), name
        assert torch.equal(rounded(master, dtype).float(), low[name].float()), name
    wide = fastinit.master_(blank(torch.float64), PLAN)
    assert all(torch.equal(wide[name].float(), float32[name]) for name in ("normal", "constant"))


def test_computed_parameters_have_masters() -> None:
    def build() -> nn.Module:
        with fastinit.deferred(seed=3):
            return parametrizations.weight_norm(nn.Linear(16, 8))

    plan = fastinit.recorded_plan(build())
    low = fastinit.materialize_(build(), dtype=torch.bfloat16)
    masters = {name: torch.empty(p.shape) for name, p in low.named_parameters()}
    fastinit.master_(masters, plan)
    name = "parametrizations.weight.original0"
    assert torch.equal(masters[name].bfloat16(), dict(low.named_parameters())[name])
    norm = torch.linalg.vector_norm(masters["parametrizations.weight.original1"], dim=1)
    torch.testing.assert_close(masters[name].flatten(), norm)


def test_plain_shards() -> None:
    """Rows, a flat range that begins within one, by names of their own; and pairs, several of one."""
    whole = model(torch.float32)
    rows = Part((8, 16), name="steps").chunk(0, 2, 1)
    flat = Part((8, 16), flat=(21, 40), name="normal")
    held = {"0.a": torch.empty(4, 16), "0.b": torch.empty(40), "orthogonal": torch.empty(8, 16)}
    fastinit.master_(held, PLAN, parts={"0.a": rows, "0.b": flat})
    assert torch.equal(held["0.a"], whole["steps"][4:])
    assert torch.equal(held["0.b"], whole["normal"].flatten()[21:61])
    assert torch.equal(held["orthogonal"], whole["orthogonal"])

    buffer = torch.full((100,), 7.0)  # as ZeRO's, of parts of several parameters and padding
    pairs = [
        (buffer[:28], Part((8, 16), flat=(100, 28), name="tied")),
        (buffer[28:98], Part((8, 16), flat=(0, 70), name="orthogonal")),
    ]
    assert fastinit.master_(pairs, PLAN) is pairs
    assert torch.equal(buffer[:28], whole["normal"].flatten()[100:])
    assert torch.equal(buffer[28:98], whole["orthogonal"].flatten()[:70])
    assert buffer[98:].tolist() == [7.0, 7.0]


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        (lambda m: m.update(other=torch.empty(3)), ValueError, "the plan has no parameter other"),
        (lambda m: m.update(steps=m["steps"].bfloat16()), ValueError, "steps is torch.bfloat16"),
        (lambda m: m.update(steps=m["steps"].to("meta")), ValueError, "on meta"),
        (lambda m: m.update(steps=None), TypeError, "steps must be a torch.Tensor"),
        (lambda m: m.update(steps=torch.zeros(1).expand(8, 16)), RuntimeError, "share memory"),
        (lambda m: m.update(part=torch.empty(2, 16)), (ValueError, RuntimeError), "part"),
    ],
)
def test_what_is_no_master_is_refused_before_anything_is_written(
    change: Any, error: type[Exception], said: str
) -> None:
    masters = blank()
    change(masters)
    with pytest.raises(error, match=said):
        fastinit.master_(masters, PLAN)
    assert masters["normal"].unique().tolist() == [7.0]


def test_arguments_of_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="plan must be"):
        fastinit.master_(blank(), FILLS)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="shards must be tensors by names, or pairs"):
        fastinit.master_(7, PLAN)  # type: ignore[type-var]
    with pytest.raises(TypeError, match="needs its parameter's name"):
        fastinit.master_([(torch.empty(8, 16), Part((8, 16)))], PLAN)
    with pytest.raises(ValueError, match="parts has tensor absent that shards lacks"):
        fastinit.master_(blank(), PLAN, parts={"absent": Part((8, 16))})


def test_no_copy_is_made() -> None:
    """Of tensors of 16 MiB, by name, by flat parts and of steps: the peak grows by less than one.

    It grows by the chunks in which steps are done, and by what threads take.
    """
    code = """
import torch, fastinit
from fastinit import Fill, Part, Plan
def kibibytes(field):
    return next(int(l.split()[1]) for l in open("/proc/self/status") if l.startswith(field))
n = 1 << 22
fills = {"a": Fill.normal(), "b": Fill.uniform(-1, 1), "c": Fill.normal().then("exp")}
plan = Plan(fills, seed=0)
masters = {name: torch.full((1 << 11, n >> 11), 7.0) for name in fills}
flat = torch.full((n,), 7.0)
fastinit.master_({"a": torch.empty(8, 8)}, Plan({"a": Fill.normal().then("exp")}))
open("/proc/self/clear_refs", "w").write("5")
before = kibibytes("VmHWM")
fastinit.master_(masters, plan)
fastinit.master_([(flat[5:], Part((2 * n,), flat=(1001, n - 5), name="a"))], plan)
print(kibibytes("VmHWM") - before)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(said.stdout) < 12 << 10


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 15), nn.Linear(15, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu())
        return out


def stepped(net: nn.Module, masters: dict[str, Tensor]) -> None:
    """A step of AdamW on the masters, of which the model's bfloat16 weights are copies."""
    optimizer = torch.optim.AdamW(masters.values(), lr=0.01)
    for _ in range(2):
        net(torch.linspace(-1, 1, 24).view(2, 12).bfloat16()).float().square().sum().backward()
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            masters[name].grad, parameter.grad = parameter.grad.float(), None
        optimizer.step()
        with torch.no_grad():
            for name, parameter in net.named_parameters():
                parameter.copy_(masters[name])


def test_state_of_an_optimizer_of_bfloat16_parameters() -> None:
    """Master copies in the optimizer's state, as those that keep them there have them."""
    with fastinit.deferred(seed=2):
        net = Net()
    plan = fastinit.recorded_plan(net)
    plan.apply_(net, device="cpu", dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(net.parameters())
    for parameter in net.parameters():
        optimizer.state[parameter]["master_param"] = torch.empty_like(
            parameter, dtype=torch.float32
        )
    state = {n: optimizer.state[p]["master_param"] for n, p in net.named_parameters()}
    fastinit.master_(state, plan)
    whole = plan.apply_(Net())
    for name, parameter in whole.named_parameters():
        assert torch.equal(state[name], parameter.detach())


@on_ranks(2)
def test_fsdp2() -> None:
    """Sharded masters are the whole's, and two steps on them what one process does."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    with fastinit.deferred(seed=2):
        net = Net()
    plan = fastinit.recorded_plan(net)
    alone = copy.deepcopy(net)
    plan.apply_(alone, device="cpu", dtype=torch.bfloat16)
    its = {name: torch.empty(p.shape) for name, p in alone.named_parameters()}
    fastinit.master_(its, plan)

    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    plan.apply_(net, device="cpu", dtype=torch.bfloat16)
    masters = {n: torch.empty_like(p, dtype=torch.float32) for n, p in net.named_parameters()}
    fastinit.master_(masters, plan)
    for name, master in masters.items():
        assert isinstance(master, DTensor)
        assert torch.equal(master.full_tensor(), its[name])
    stepped(net, masters)
    stepped(alone, its)
    for name, master in masters.items():  # bfloat16 gradients, summed by another order
        torch.testing.assert_close(master.full_tensor(), its[name], rtol=0.0, atol=2e-3)
    with pytest.raises(RuntimeError, match="ranks differ in the seed"):
        fastinit.master_(masters, Plan(dict(plan), seed=torch.distributed.get_rank()))
