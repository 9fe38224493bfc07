"""accelerate: what its loads leave on meta is filled, what it keeps elsewhere is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from loaded_models import CONFIGS, quiet, saved, transformers
from torch import Tensor, nn

from fastinit import Plan, audit, deferred, fill_missing_, materialize_, recorded_plan

__all__ = ["quiet"]  # a fixture of each test here

pytestmark = pytest.mark.frameworks
accelerate = pytest.importorskip("accelerate", reason="make frameworks")


class Net(nn.Module):
    """Tied, with buffers of each kind, and layers that the file lacks."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.body = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
        self.out = nn.Linear(4, 10, bias=False)
        self.out.weight = self.embed.weight
        self.new = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
        self.register_buffer("scale", torch.arange(1.0, 5.0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(self.embed(x)) * self.scale
        return torch.cat([self.out(x), self.new(x)], dim=-1)


def built(seed: int) -> Net:
    with deferred(seed):
        model = Net().eval()
    return materialize_(model)


def planned() -> Plan:
    with deferred(seed=3):
        twin = Net()
    return recorded_plan(twin)


@pytest.fixture
def file(tmp_path: Path) -> str:
    """A checkpoint without ``new``."""
    state = {k: v for k, v in built(99).state_dict().items() if not k.startswith("new.")}
    torch.save(state, tmp_path / "model.bin")
    return str(tmp_path / "model.bin")


@pytest.fixture
def expected() -> Net:
    """What was saved, and what seed 3 gives to the rest."""
    model, of_seed = built(99), built(3)
    model.new.load_state_dict(of_seed.new.state_dict())
    return model


NEW = [f"new.{i}.{kind}" for i in (0, 1) for kind in ("weight", "bias")]
X = torch.arange(7)
PLACES: dict[str, dict[str, str]] = {
    "one device": {"": "cpu"},
    "some on disk": {"embed": "disk", "body": "disk", "out": "disk", "new": "cpu"},
}


@pytest.mark.parametrize("blocks", ["accelerate's", "deferred's", "both", "both, turned round"])
def test_what_a_load_leaves_is_filled_whoever_built_the_model(
    blocks: str, file: str, expected: Net
) -> None:
    if blocks == "accelerate's":
        with accelerate.init_empty_weights(include_buffers=True):
            model = Net()
    elif blocks == "deferred's":
        with deferred(seed=3):
            model = Net()
    elif blocks == "both":
        with accelerate.init_empty_weights(), deferred(seed=3):
            model = Net()
    else:
        with deferred(seed=3), accelerate.init_empty_weights():
            model = Net()
    plan = planned() if blocks == "accelerate's" else None
    accelerate.load_checkpoint_in_model(model, file, device_map={"": "cpu"})
    assert set(NEW) <= set(audit(model, plan).missing)
    assert set(NEW) <= set(fill_missing_(model, plan=plan).filled)
    assert torch.equal(model.eval()(X), expected(X))


@pytest.mark.parametrize("places", PLACES)
def test_what_the_file_lacks_is_written_before_a_load_that_dispatches(
    places: str, file: str, expected: Net, tmp_path: Path
) -> None:
    """Afterwards it is too late: accelerate moves what is still on meta, which fails."""
    plan = planned()
    with accelerate.init_empty_weights():
        model = Net().eval()
    options: dict[str, Any] = {"device_map": PLACES[places], "offload_folder": tmp_path / "disk"}
    plan.apply_(model, only="new.*", device="cpu")
    model = accelerate.load_checkpoint_and_dispatch(model, file, **options)
    assert torch.equal(model(X), expected(X))
    found = audit(model, plan)
    assert not found.missing
    assert set(found.names("offloaded")) == {n for n, p in model.named_parameters() if p.is_meta}
    assert fill_missing_(model, plan=plan).filled == []
    assert fill_missing_(model, ["new.*"], plan=plan).filled == NEW
    assert torch.equal(model(X), expected(X))


def test_what_is_offloaded_is_refused_where_it_would_be_dropped(
    file: str, expected: Net, tmp_path: Path
) -> None:
    plan = planned()
    with deferred(seed=3):
        model = Net().eval()
    plan.apply_(model, only="new.*", device="cpu")
    places = PLACES["some on disk"]
    accelerate.load_checkpoint_and_dispatch(
        model, file, device_map=places, offload_folder=tmp_path / "disk"
    )
    with pytest.raises(ValueError, match=r"offloaded by accelerate.*body\.0\.weight"):
        fill_missing_(model, ["body.*"], plan=plan)
    with pytest.raises(ValueError, match=r"offloaded by accelerate.*embed\.weight"):
        fill_missing_(model, {"embed.weight": slice(2)}, plan=plan)
    with pytest.raises(NotImplementedError, match=r"accelerate has offloaded.*body\.0\.weight"):
        plan.apply_(model, only="body.*", device="cpu")
    with pytest.raises(NotImplementedError, match=r"accelerate has offloaded.*body\.0\.weight"):
        materialize_(model)
    plan.apply_(model, only="new.*")  # others are
    assert torch.equal(model(X), expected(X))


@pytest.mark.parametrize("offload", ["cpu_offload", "disk_offload"])
def test_models_that_were_offloaded_whole_have_nothing_missing(
    offload: str, tmp_path: Path
) -> None:
    model, plan = built(3), planned()
    folder = {"offload_dir": tmp_path} if offload == "disk_offload" else {}
    expected = model(X)
    getattr(accelerate, offload)(model, execution_device=torch.device("cpu"), **folder)
    assert audit(model, plan).missing == []
    assert fill_missing_(model, plan=plan).filled == []
    with pytest.raises(NotImplementedError, match="accelerate has offloaded"):
        plan.apply_(model, only="body.*", device="cpu")
    assert torch.equal(model(X), expected)


def test_a_model_of_transformers_with_a_head_that_the_file_lacks(tmp_path: Path) -> None:
    trained = saved("llama", tmp_path)
    auto = transformers.AutoModelForSequenceClassification
    with deferred(seed=3):
        twin = auto.from_config(CONFIGS["llama"]())
    plan = recorded_plan(twin)
    with accelerate.init_empty_weights(include_buffers=True):
        model = auto.from_config(CONFIGS["llama"]())
    accelerate.load_checkpoint_in_model(model, tmp_path, device_map={"": "cpu"})
    assert "score.weight" in audit(model, plan).missing
    done = fill_missing_(model, plan=plan)
    assert "score.weight" in done.filled
    assert "model.rotary_emb.inv_freq" in done.filled
    assert torch.equal(model.score.weight, materialize_(twin).score.weight)
    assert torch.equal(model.model.embed_tokens.weight, trained.model.embed_tokens.weight)
    assert model(torch.arange(8)[None]).logits.isfinite().all()
