"""Lightning and Fabric: what their strategies shard, wrap or copy has the values of the whole model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor, nn

import fastinit
from fastinit import DeferredError, Plan
from fastinit.frameworks import fsdp1
from frameworks.jobs import as_torchrun

pytestmark = [
    pytest.mark.frameworks,
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
]
pytest.importorskip("lightning", reason="make frameworks")

CPU = torch.device("cpu")


class Scale(nn.Module):
    """Without ``reset_parameters``, which Lightning asks of modules on meta."""

    frequencies: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.randn(5) / 10 + 1)
        self.register_buffer("frequencies", torch.arange(1.0, 6.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain * self.frequencies


class Net(nn.Module):
    """Tied, of sizes that ranks do not divide, with laws of each kind."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 5)
        self.body = nn.Sequential(
            nn.Linear(5, 6), nn.GELU(), nn.Linear(6, 5), nn.LayerNorm(5), Scale()
        )
        nn.init.trunc_normal_(self.body[0].weight, std=0.02)
        nn.init.orthogonal_(self.body[2].weight)
        self.out = nn.Linear(5, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.out(self.body(self.embed(x)))
        return logits


def built(seed: int = 3) -> Net:
    with fastinit.deferred(seed):
        return Net()


def planned() -> Plan:
    return fastinit.recorded_plan(built())


def fsdp2(model: Net, mesh: Any) -> None:
    from torch.distributed.fsdp import fully_shard

    for part in (model.body[0], model.body[2], model):
        fully_shard(part, mesh=mesh["data_parallel"])


def tensor_parallel(model: Net, mesh: Any) -> None:
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    plan = {"body.0": ColwiseParallel(), "body.2": RowwiseParallel()}
    parallelize_module(model, mesh["tensor_parallel"], plan)


LAYOUTS: dict[str, tuple[int, int, Callable[[Net, Any], None]]] = {
    "FSDP2": (2, 1, fsdp2),
    "tensor parallel": (1, 2, tensor_parallel),
}


def full(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def tensors(model: nn.Module) -> dict[str, Tensor]:
    """Gathered, by names without what wrappers put into them."""
    wrappers = ("_forward_module.", "_fsdp_wrapped_module.", "module.", "net.")
    found = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        for wrapper in wrappers:
            name = name.replace(wrapper, "")
        found[name] = full(tensor).clone()
    return found


def assert_whole(found: dict[str, Tensor]) -> None:
    expected = tensors(fastinit.materialize_(built()))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def cluster() -> Any:
    from lightning.fabric.plugins.environments import TorchElasticEnvironment

    return TorchElasticEnvironment()


def fabric(strategy: Any) -> Any:
    from lightning.fabric import Fabric

    made = Fabric(accelerator="cpu", devices=2, strategy=strategy, plugins=[cluster()])
    made.launch()
    return made


def parallel(layout: str, parallelize: Callable[[Net, Any], Net]) -> Any:
    from lightning.fabric.strategies import ModelParallelStrategy

    data, tensor, _ = LAYOUTS[layout]
    strategy = ModelParallelStrategy(
        parallelize, data_parallel_size=data, tensor_parallel_size=tensor
    )
    return fabric(strategy)


@pytest.mark.parametrize("layout", LAYOUTS)
@on_ranks(2)
def test_fabric_parallelizes_what_was_recorded(layout: str) -> None:
    def parallelize(model: Net, mesh: Any) -> Net:
        plan = fastinit.recorded_plan(model)
        LAYOUTS[layout][2](model, mesh)
        return plan.apply_(model, device="cpu")

    with as_torchrun():
        its = parallel(layout, parallelize)
        with its.init_module():
            model = built()
        model = its.setup(model)
    assert_whole(tensors(model))
    assert any(hasattr(p, "full_tensor") for p in model.parameters())
    assert model(torch.arange(4)).isfinite().all()


@pytest.mark.parametrize("layout", LAYOUTS)
@on_ranks(2)
def test_what_fabric_initialised_itself_is_written_anew(layout: str) -> None:
    """Its way: on meta, then ``to_empty`` and ``reset_parameters``, which not all modules have."""

    def parallelize(model: Net, mesh: Any) -> Net:
        LAYOUTS[layout][2](model, mesh)
        return model

    with as_torchrun():
        its = parallel(layout, parallelize)
        with its.init_module(empty_init=True):
            model = Net()
        model = its.setup(model)
        model.module.out.weight = model.module.embed.weight  # which to_empty has parted
        planned().apply_(model, buffers="restore")
        assert_whole(tensors(model))

        recorded = its.setup(built())  # by its modules, whatever is in them now
    done = fastinit.fill_missing_(recorded, "*")
    assert "embed.weight" in done.filled
    assert_whole(tensors(recorded))


@on_ranks(2)
def test_fabric_copies_what_is_written_before_or_after_it_is_wrapped() -> None:
    with as_torchrun():
        its = fabric("ddp")
        with its.init_module():
            model = its.setup(fastinit.materialize_(built()))
        assert_whole(tensors(model))
        torch.manual_seed(dist.get_rank())
        with its.init_module(empty_init=True):
            later = its.setup(Net())
    planned().apply_(later, buffers="restore")
    assert_whole(tensors(later))
    names = [each.name for each in fastinit.audit(later).tensors]
    assert names == [each.name for each in fastinit.audit(built()).tensors]
    assert fastinit.audit(later).tied == {"out.weight": "embed.weight"}


def built_within(*blocks: Callable[[], Any]) -> None:
    with ExitStack() as stack:
        for block in blocks:
            stack.enter_context(block())
        Net()


@pytest.mark.parametrize("outer", ["Lightning's", "ours"])
@on_ranks(2)
def test_what_init_module_drops_is_an_error(outer: str) -> None:
    """With ``empty_init=True`` functions of torch.nn.init do nothing."""
    said = r"torch\.nn\.init\.\w+ at .*test_lightning.* wrote nothing.*leave it out"
    with as_torchrun():
        its = fabric("ddp")
        blocks = [fastinit.deferred, lambda: its.init_module(empty_init=True)]
        with pytest.raises(DeferredError, match=said):
            built_within(*(blocks if outer == "ours" else reversed(blocks)))


def fsdp_strategy(of: str) -> Any:
    """FSDPStrategy, which by its own type alone is refused without a GPU."""
    from importlib import import_module

    class OnCPU(import_module(f"lightning.{of}.strategies").FSDPStrategy):  # type: ignore[misc]
        pass

    return OnCPU()


@on_ranks(2)
def test_fabric_with_fsdp1() -> None:
    from torch.distributed.fsdp import FullyShardedDataParallel

    with as_torchrun():
        its = fabric(fsdp_strategy("fabric"))
        wrapped = FullyShardedDataParallel(Net(), device_id=CPU, use_orig_params=True)
        model = its.setup(wrapped)
    planned().apply_(model, parts=fsdp1.parts(model))
    with FullyShardedDataParallel.summon_full_params(wrapped):
        assert_whole(tensors(wrapped))


def lightning_module(kind: str, seen: dict[str, Tensor]) -> Any:
    from lightning.pytorch import LightningModule
    from torch.distributed.fsdp import FullyShardedDataParallel

    class Trained(LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net: Any = None

        def configure_model(self) -> None:
            if self.net is not None:
                return
            self.net = built()
            if kind in LAYOUTS:
                plan = fastinit.recorded_plan(self.net)
                LAYOUTS[kind][2](self.net, self.device_mesh)
                plan.apply_(self.net, device=self.device)
            elif kind == "FSDP1":
                plan = fastinit.recorded_plan(self.net)
                self.net = FullyShardedDataParallel(Net(), device_id=CPU, use_orig_params=True)
                plan.apply_(self.net, parts=fsdp1.parts(self.net))
            else:
                fastinit.materialize_(self.net)

        def on_train_start(self) -> None:
            if kind == "FSDP1":
                with FullyShardedDataParallel.summon_full_params(self.net):
                    seen.update(tensors(self.net))
            else:
                seen.update(tensors(self.net))

        def training_step(self, batch: Tensor, index: int) -> Tensor:
            loss: Tensor = self.net(batch).square().mean()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), 0.1)

    return Trained()


def trainer(kind: str, directory: Path) -> Any:
    from lightning.pytorch import Trainer
    from lightning.pytorch.strategies import ModelParallelStrategy

    if kind in LAYOUTS:
        data, tensor, _ = LAYOUTS[kind]
        strategy: Any = ModelParallelStrategy(data, tensor)
    else:
        strategy = fsdp_strategy("pytorch") if kind == "FSDP1" else "ddp"
    return Trainer(
        max_steps=2,
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        plugins=[cluster()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=directory,
    )


@pytest.mark.parametrize("kind", [*LAYOUTS, "DDP", "FSDP1"])
@on_ranks(2)
def test_a_trainer_trains_the_whole_models_weights(kind: str, tmp_path: Path) -> None:
    seen: dict[str, Tensor] = {}
    data = torch.utils.data.DataLoader(torch.arange(16) % 11, batch_size=4)
    with as_torchrun():
        model = lightning_module(kind, seen)
        trainer(kind, tmp_path).fit(model, data)
    assert_whole(seen)
    if kind != "FSDP1":
        assert not torch.equal(tensors(model)["embed.weight"], seen["embed.weight"])  # a step
