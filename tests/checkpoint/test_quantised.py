"""Weights in 8 bits and fewer: files hold what random functions write, and say so in config.json."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from same_bits import bits
from stored_models import SEED, loaded, recorded
from torch import nn

import fastinit
from fastinit import Blocks, checkpoint, init, recorded_plan
from fastinit.checkpoint import disk, packed, quantised
from fastinit.fills.many import fill_many_

BLOCK_FORMATS = [name for name in quantised.SCHEMES if name != quantised.FLOAT8]


class Logits(nn.Module):
    """Linear layers of several laws, experts in one parameter, and weights that are no layer's alone."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 96)
        self.body = nn.ModuleList(nn.Linear(96, 96) for _ in range(2))
        self.up = nn.Linear(96, 224, bias=False)
        nn.init.normal_(self.body[1].weight, mean=0.1, std=3.0)
        nn.init.trunc_normal_(self.up.weight, std=1e-4)
        self.conv = nn.Conv2d(3, 5, 3)
        self.head = nn.Linear(96, 40, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def get_output_embeddings(self) -> nn.Module:
        return self.head


def config(folder: Path) -> dict[str, Any]:
    its: dict[str, Any] = json.loads((folder / "config.json").read_text())["quantization_config"]
    return its


@pytest.fixture
def in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks that begin within blocks, and blocks made a few at a time."""
    monkeypatch.setattr(disk, "CHUNK", 4096)
    monkeypatch.setattr(packed, "AT_ONCE", 1024)


DRAWN: dict[str, tuple[tuple[int, ...], Any]] = {
    "body.0": ((96, 96), lambda t, **key: init.kaiming_uniform_(t, a=5**0.5, **key)),
    "body.1": ((96, 96), lambda t, **key: init.normal_(t, 0.1, 3.0, **key)),
    "up": ((224, 96), lambda t, **key: init.trunc_normal_(t, std=1e-4, **key)),
}


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("shard_size", ["5GB", "9KB"])
@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_blocks_are_those_that_random_functions_write(
    tmp_path: Path, format: str, shard_size: str
) -> None:
    model = recorded(Logits)
    done = checkpoint.write(model, tmp_path, dtype=format, shard_size=shard_size)
    again = checkpoint.write(model, tmp_path, dtype=format, shard_size=shard_size, verify=True)
    assert (again.bytes, again.verified) == (0, done.bytes)
    have = loaded(tmp_path)
    key = quantised.SCHEMES[format].data
    for name, (shape, fill_) in DRAWN.items():
        want = fill_(Blocks.empty(shape, format), seed=SEED, name=f"{name}.weight")
        assert bits(have.pop(f"{name}.{key}")).equal(bits(want.data)), name
        assert bits(have.pop(f"{name}.weight_scale")).equal(bits(want.scale)), name
        if format == "nvfp4":
            reciprocal = have.pop(f"{name}.weight_global_scale")
            assert reciprocal.equal((1 / want.tensor_scale).reshape(1))
    rest = model.state_dict()
    assert have.keys() == {name for name in rest if name.removesuffix(".weight") not in DRAWN}
    assert all(have[name].dtype == torch.bfloat16 for name in have)
    assert done.layout.elements == sum(t.numel() for t in rest.values())


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, "float8_e4m3fn"])
def test_float8_has_the_least_power_of_two_with_which_nothing_saturates(
    tmp_path: Path, dtype: torch.dtype | str
) -> None:
    checkpoint.write(recorded(Logits), tmp_path, dtype=dtype)
    have = loaded(tmp_path)
    most = {"body.0": 96**-0.5, "body.1": 0.1 + 3 * 6.7637, "up": 6.4e-4}
    for name, (shape, fill_) in DRAWN.items():
        scales = have[f"{name}.weight_scale"]
        assert scales.shape == (shape[0], 1)
        assert scales.dtype == torch.bfloat16
        scale = scales.unique().item()
        assert most[name] / 448 <= scale < most[name] / 224
        assert torch.tensor(scale).frexp()[0] == 0.5
        eight = torch.empty(shape, dtype=torch.float8_e4m3fn)
        fill_(eight, seed=SEED, name=f"{name}.weight", scale=scale)
        assert bits(have[f"{name}.weight"]).equal(bits(eight)), name
        full = fill_(torch.empty(shape), seed=SEED, name=f"{name}.weight")
        assert (full / scale).abs().max() <= 448


def test_config_says_which_layers_have_which_format(tmp_path: Path) -> None:
    model = recorded(lambda: Logits(tied=True))
    checkpoint.write(model, tmp_path / "all", dtype="mxfp4")
    its = config(tmp_path / "all")
    assert its["format"] == "mxfp4-pack-quantized"
    assert its["ignore"] == ["head", "embed"]
    assert [group["targets"] for group in its["config_groups"].values()] == [["Linear"]]
    formats = {"body.1.*": "nvfp4", ("body.*", "head.*"): torch.float8_e4m3fn}
    untied = recorded(Logits)
    checkpoint.write(untied, tmp_path / "some", dtype=formats)
    its = config(tmp_path / "some")
    assert its["format"] == "mixed-precision"
    assert its["ignore"] == ["up", "embed"]
    groups = its["config_groups"].values()
    assert sorted((group["format"], group["targets"]) for group in groups) == [
        ("float-quantized", ["body.0", "head"]),
        ("nvfp4-pack-quantized", ["body.1"]),
    ]
    have = loaded(tmp_path / "some")
    assert have["up.weight"].dtype == torch.bfloat16
    assert have["head.weight"].dtype == torch.float8_e4m3fn
    assert "body.1.weight_packed" in have
    assert "body.1.weight" not in have


def test_dtypes_by_pattern(tmp_path: Path) -> None:
    """Beside formats, or alone: then there is nothing of quantisation in the configuration."""
    asked = {"body.0.*": torch.float32, "body.*": "mxfp4", "embed.*": torch.float16}
    checkpoint.write(recorded(Logits), tmp_path / "some", dtype=asked)
    have, whole = loaded(tmp_path / "some"), fastinit.materialize_(recorded(Logits)).state_dict()
    for name, dtype in (
        ("body.0.weight", torch.float32),
        ("body.0.bias", torch.float32),
        ("embed.weight", torch.float16),
        ("up.weight", torch.bfloat16),
    ):
        assert have[name].equal(whole[name].to(dtype)), name
    assert config(tmp_path / "some")["ignore"] == ["body.0", "up", "head", "embed"]
    assert "body.1.weight_packed" in have
    done = checkpoint.write(recorded(Logits), tmp_path / "plain", dtype={"up.*": torch.float64})
    assert done.layout.quantization is None
    assert not (tmp_path / "plain" / "config.json").exists()
    assert loaded(tmp_path / "plain")["up.weight"].equal(whole["up.weight"].double())


@pytest.mark.usefixtures("in_pieces")
@pytest.mark.parametrize("format", BLOCK_FORMATS)
def test_a_block_is_made_once(tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its values and its scale; but for those that a chunk ends in, which the next makes again."""
    made: list[int] = []

    def counted(requests: Any) -> None:
        made.extend(request.tensor.numel() for request in requests)
        fill_many_(requests)

    monkeypatch.setattr(packed, "fill_many_", counted)
    done = checkpoint.write(recorded(Logits), tmp_path, dtype=format)
    values = sum(math.prod(shape) for shape, _ in DRAWN.values())
    chunks = done.bytes // disk.CHUNK + 1
    assert values <= sum(made) <= values + 32 * chunks


class Mixture(nn.Module):
    """Experts in one parameter, which stays as it is, beside a layer in few bits."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ParameterDict({"up": nn.Parameter(torch.randn(4, 96, 64))})
        self.embed = nn.ParameterDict({"class_token": nn.Parameter(torch.randn(1, 1, 96))})
        self.embed["proj"] = nn.Linear(96, 96).weight
        self.conv = nn.Conv1d(96, 96, 2)
        self.attention = nn.MultiheadAttention(96, 2)
        self.up = nn.Linear(96, 96)


def test_nobody_looks_for_layers_below_a_stack_of_matrices() -> None:
    ignored = checkpoint.layout(recorded(Mixture), dtype="mxfp4").quantization["ignore"]
    assert [name for name in ignored if re.match("re:.*exp", name)] == [r"re:experts\..*"]
    assert not any(re.fullmatch(n.removeprefix("re:"), "up") for n in ignored)
    assert not any("conv" in name for name in ignored)
    assert "attention.out_proj" in ignored  # whose class loaders take for a linear layer's


def test_what_the_directory_says_of_other_things_stays(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"mine": 1}')
    checkpoint.write(recorded(Logits), tmp_path, dtype="mxfp4")
    assert json.loads((tmp_path / "config.json").read_text())["mine"] == 1
    with pytest.raises(ValueError, match=r"was written with dtypes bfloat16 uint8, not"):
        checkpoint.write(recorded(Logits), tmp_path, dtype="nvfp4")
    with pytest.raises(ValueError, match=r"another plan or of another model"):
        checkpoint.write(recorded(Logits), tmp_path, dtype={"up.*": "mxfp4"})


def orthogonal() -> nn.Module:
    model = nn.Sequential(nn.Linear(64, 64))
    nn.init.orthogonal_(model[0].weight)
    return model


@pytest.mark.parametrize(
    ("make", "dtype", "error", "said"),
    [
        (Logits, "mxfp5", ValueError, "dtype must be one of float8_e4m3fn, .*, but got 'mxfp5'"),
        (Logits, "mxfp8_e5m2", ValueError, "must be one of"),
        (Logits, {"*": torch.float8_e5m2}, ValueError, "must be one of .*, but got 'float8_e5m2'"),
        (Logits, {"*": 8}, TypeError, "dtype must be a torch.dtype or a format's name, but got 8"),
        (Logits, {3: "mxfp4"}, TypeError, "dtype must be a pattern of names"),
        (Logits, {"*": torch.int8}, ValueError, "or of 16 bits and more, but got 'int8'"),
        (Logits, {"none": torch.float32}, ValueError, "no floating-point parameter matches .*none"),
        (Logits, {}, ValueError, "but got {}"),
        (Logits, {"conv.weight": "mxfp4"}, ValueError, "no linear weight matches .*conv.weight"),
        (lambda: Logits(True), {"head.*": "mxfp4"}, ValueError, r"no linear weight matches .*head"),
        (lambda: nn.Conv1d(32, 32, 1), "mxfp4", ValueError, "the model has no weight"),
        (lambda: nn.Sequential(nn.Linear(48, 2)), "mxfp4", ValueError, r"0\.weight: .*blocks of 32"),
        (orthogonal, "nvfp4", ValueError, r"0\.weight cannot be stored in nvfp4: .*orthogonal"),
        (orthogonal, "float8_e4m3fn", ValueError, r"0\.weight cannot be stored in float8_e4m3fn"),
    ],
)  # fmt: skip
def test_what_cannot_be_right_is_refused_before_anything_is_written(
    tmp_path: Path, make: Any, dtype: Any, error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        checkpoint.write(recorded(make), tmp_path / "new", dtype=dtype)
    assert not (tmp_path / "new").exists()


def test_values_that_are_there_have_no_law(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"body\.0\.weight cannot be stored in mxfp4: .*are there"):
        checkpoint.write(Logits(), tmp_path, dtype="mxfp4")
    checkpoint.write(Logits(), tmp_path, recorded_plan(recorded(Logits)), dtype="mxfp4")
    assert "up.weight_packed" in loaded(tmp_path)
