"""Checkpoints: what from_pretrained loads is what materialize_ writes, to the bit, also after a kill."""

import errno
import fcntl
import json
import os
import re
import shutil
from pathlib import Path

import pytest
import torch
import warm
from same_bits import assert_values
from torch import nn

from fastinit import Fill, Plan, deferred, materialize_
from fastinit.base import files
from fastinit.checkpoint import disk as stream_file
from fastinit.checkpoint import safetensors as checkpoint_files
from fastinit.checkpoint import writing as checkpoint

safetensors = pytest.importorskip("safetensors.torch")

SEED = 7


class Net(nn.Module):
    """A tied weight, a padding row, a structure, given values, buffers, layouts and odd sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(101, 24, padding_idx=3)
        self.body = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
        nn.init.orthogonal_(self.body[1].weight)
        with torch.no_grad():  # every other column
            nn.init.normal_(self.body[2].weight[:, ::2], std=3.0)
        self.norm = nn.BatchNorm1d(24)
        self.scale = nn.Parameter(torch.linspace(0.5, 2.0, 7))
        self.conv = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
        self.empty = nn.Parameter(torch.empty(0, 4))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_buffer("mask", torch.tensor([True, False, True]))
        self.head = nn.Linear(24, 101, bias=False)
        self.head.weight = self.embed.weight


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of a block, so that small files have many."""
    monkeypatch.setattr(stream_file, "CHUNK", 4096)
    monkeypatch.setattr(checkpoint, "CHUNK", 4096)


def recorded(make=Net, seed: int = SEED) -> nn.Module:
    with deferred(seed):
        return make()


def expected(make=Net, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    return dict(materialize_(recorded(make), dtype=dtype).state_dict())


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        found.update(safetensors.load_file(path))
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().reshape(-1).view(torch.uint8).tolist()


@pytest.mark.usefixtures("small_chunks")
@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shard_size", ["5GB", "9KB"])
def test_a_module_is_stored_with_the_bits_of_materialize(tmp_path, dtype, shard_size) -> None:
    model = recorded()
    done = checkpoint.write(model, tmp_path, dtype=dtype, shard_size=shard_size)
    assert all(parameter.is_meta for parameter in model.parameters())
    want = expected(dtype=dtype)
    assert want.pop("head.weight") is not None  # tied, stored once
    have = loaded(tmp_path)
    assert have.keys() == want.keys()
    for name, value in want.items():
        assert (have[name].dtype, have[name].shape) == (value.dtype, value.shape), name
        assert_values(have[name], value, "orthogonal" if name == "body.1.weight" else "", name)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == sorted(
        [shard.file for shard in done.layout.shards]
        + ([checkpoint_files.INDEX] if shard_size == "9KB" else [])
    )
    if shard_size == "9KB":
        index = json.loads((tmp_path / checkpoint_files.INDEX).read_text())
        assert index["weight_map"].keys() == want.keys()
        assert index["metadata"]["total_size"] == sum(value.nbytes for value in want.values())
    else:
        eager = Net()
        safetensors.load_model(eager.to(dtype or torch.float32), tmp_path / "model.safetensors")


def test_values_that_a_model_has_are_stored(tmp_path) -> None:
    model = Net()
    checkpoint.write(model, tmp_path)
    have = loaded(tmp_path)
    assert all(bits(have[name]) == bits(value) for name, value in model.state_dict().items()
               if name != "head.weight")  # fmt: skip


def test_a_plan_is_stored_instead_of_what_was_recorded(tmp_path) -> None:
    plan = Plan({"weight": Fill.uniform(1.0, 2.0), "bias": Fill.constant(3.0)}, seed=11)
    model = recorded(lambda: nn.Linear(5, 4))
    checkpoint.write(model, tmp_path, plan)
    want = plan.apply_(nn.Linear(5, 4)).state_dict()
    assert all(bits(value) == bits(want[name]) for name, value in loaded(tmp_path).items())
    with pytest.raises(
        ValueError, match="plan does not fit the model: the plan has no parameter bias"
    ):
        checkpoint.write(model, tmp_path, Plan({"weight": Fill.normal()}))
    with pytest.raises(ValueError, match="the model has no parameter other"):
        checkpoint.write(model, tmp_path, Plan({**plan, "other": Fill.normal()}))


@pytest.mark.usefixtures("small_chunks")
def test_steps_and_parts_of_their_own_are_stored(tmp_path) -> None:
    """Of a parameter that takes many chunks, whose ends are in no part's row."""
    meta = torch.empty(5, 3, 7, 101, device="meta")
    dt = Fill.uniform(-7.0, -2.0).then("exp").then("inverse_softplus")
    some = (dt, Fill.normal(), Fill.arange(dim=2))
    fills = {
        "fused": Fill.fused({f"w{i}": (meta[:, i], fill) for i, fill in enumerate(some)}),
        "steps": dt.with_part(meta[1:4, 0, :, ::2].transpose(0, 2), Fill.normal(), own=True),
        "ramp": Fill.arange(1.0, 1.0, 0).then("log").with_part(meta[1, :, 3], dt),
        "whole": dt.with_part(meta[0, 0, :, :7], Fill.orthogonal(), own=True),
    }
    plan = Plan(fills, seed=11)

    def build() -> nn.Module:
        return nn.ParameterDict({name: nn.Parameter(torch.zeros(105, 101)) for name in fills})

    checkpoint.write(recorded(build), tmp_path, plan)
    want, have = plan.apply_(build()).state_dict(), loaded(tmp_path)
    for name, value in want.items():
        assert_values(have[name], value, "orthogonal" if name == "whole" else "", name)


FAMILIES = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "vocab_size": 90},
    "llama": {"tie_word_embeddings": True},
    "mixtral": {"num_local_experts": 3},
    "qwen3_moe": {"num_experts": 3, "moe_intermediate_size": 16, "head_dim": 8},
    "t5": {"d_model": 32, "d_ff": 48, "d_kv": 8, "num_layers": 2, "num_heads": 4},
    "bert": {"architectures": ["BertForMaskedLM"]},
    "mamba": {"state_size": 4},
    "vit": {"image_size": 16, "patch_size": 4},
}
SHAPES = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def family(name: str) -> nn.Module:
    from fastinit.command import models

    transformers = pytest.importorskip("transformers")
    fields = {**({} if name in ("gpt2", "t5") else SHAPES), **FAMILIES[name]}
    config = transformers.CONFIG_MAPPING[name].from_dict({"model_type": name, **fields})
    return models.from_config(config, torch.bfloat16, SEED)


@pytest.mark.parametrize("name", FAMILIES)
def test_from_pretrained_loads_the_bits_of_materialize(name: str, tmp_path) -> None:
    model = family(name)
    done = checkpoint.write(model, tmp_path / "ours", shard_size="20KB")
    assert len(done.layout.shards) > 1
    again, said = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(said.values()), said
    materialize_(model)
    have = again.state_dict()
    for key, value in model.state_dict().items():
        assert have[key].dtype == value.dtype, key
        assert bits(have[key]) == bits(value), key

    # The same tensors under the same names as save_pretrained's, and the same other files.
    model.save_pretrained(tmp_path / "theirs")
    ours, theirs = loaded(tmp_path / "ours"), loaded(tmp_path / "theirs")
    assert ours.keys() == theirs.keys()
    assert all(bits(ours[key]) == bits(value) for key, value in theirs.items())
    for path in (tmp_path / "theirs").glob("*config.json"):
        assert (tmp_path / "ours" / path.name).read_text() == path.read_text()


def test_resuming_gives_the_files_of_an_uninterrupted_run(tmp_path) -> None:
    whole, folder = tmp_path / "whole", tmp_path / "killed"
    checkpoint.write(family("llama"), whole, shard_size="6KB")
    calls = []

    def stop_at_the_fourth_shard(done: int, total: int) -> None:
        calls.append(done)
        if len(calls) > 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(
            family("llama"), folder, shard_size="6KB", progress=stop_at_the_fourth_shard
        )
    shards = sorted(folder.glob("*.safetensors"))
    assert len(shards) == 3
    assert not list(folder.glob(".*"))
    assert not (folder / checkpoint_files.INDEX).exists()
    times = [path.stat().st_mtime_ns for path in shards]
    done = checkpoint.write(family("llama"), folder, shard_size="6KB")
    assert done.kept == 3
    assert [path.stat().st_mtime_ns for path in shards] == times
    assert contents(folder) == contents(whole)
    assert checkpoint.write(family("llama"), folder, shard_size="6KB").bytes == 0
    damaged = bytearray(shards[1].read_bytes())
    damaged.pop()
    shards[1].write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        checkpoint.write(family("llama"), folder, shard_size="6KB")


def run(code: str, *arguments: object) -> str:
    done = warm.run(code, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_sigkill_leaves_nothing_that_looks_whole(tmp_path) -> None:
    """Killed at four moments between the beginning and the end of writing 24 shards."""
    code = """
        import glob, os, signal, sys, time, warnings
        warnings.simplefilter("ignore")
        from torch import nn
        from fastinit.checkpoint import writing as checkpoint
        from fastinit import deferred

        with deferred(7):
            model = nn.Sequential(*(nn.Linear(512, 512) for _ in range(24)))
        for i, directory in enumerate(sys.argv[1:]):
            process = os.fork()
            if not process:
                checkpoint.write(model, directory, shard_size="2MB")
                os._exit(0)
            while len(glob.glob(directory + "/*.safetensors")) <= 5 * i:
                time.sleep(0.0005)
            os.kill(process, signal.SIGKILL)
            os.waitpid(process, 0)
    """

    def make() -> nn.Module:
        return nn.Sequential(*(nn.Linear(512, 512) for _ in range(24)))

    whole = checkpoint.write(recorded(make), tmp_path / "whole", shard_size="2MB")
    sizes = {shard.file: shard.size for shard in whole.layout.shards}
    assert len(sizes) == 24
    folders = [tmp_path / f"killed-{i}" for i in range(4)]
    run(code, *folders)
    interrupted = 0
    for folder in folders:
        names = {path.name for path in folder.iterdir()}
        for name in names & sizes.keys():
            assert (folder / name).stat().st_size == sizes[name]
        if checkpoint_files.INDEX in names:
            assert names >= sizes.keys()
        else:
            interrupted += 1
        checkpoint.write(recorded(make), folder, shard_size="2MB")
        assert contents(folder) == contents(tmp_path / "whole")
    assert interrupted


def test_another_model_in_the_directory_is_refused(tmp_path) -> None:
    def linear() -> nn.Module:
        return nn.Linear(64, 64)

    checkpoint.write(recorded(linear), tmp_path, shard_size="10KB")
    before = contents(tmp_path)
    for model, options, message in (
        (recorded(linear, 8), {}, "written with seed 7, not 8; --overwrite"),
        (recorded(linear), {"dtype": torch.float16}, "dtypes float32, not float16"),
        (recorded(lambda: nn.Linear(64, 32)), {}, "another plan or of another model"),
        (recorded(linear), {"shard_size": "5GB"}, "another shard size"),
    ):
        with pytest.raises(ValueError, match=message):
            checkpoint.write(model, tmp_path, **{"shard_size": "10KB", **options})
        assert contents(tmp_path) == before
    done = checkpoint.write(recorded(linear, 8), tmp_path, overwrite=True)
    assert done.kept == 0
    assert sorted(contents(tmp_path)) == [checkpoint_files.SINGLE]
    safetensors.save_file({"weight": torch.ones(2)}, tmp_path / checkpoint_files.SINGLE)
    with pytest.raises(ValueError, match="not written by fastinit"):
        checkpoint.write(recorded(linear, 8), tmp_path)


def test_too_little_room_is_seen_before_anything_is_written(tmp_path, monkeypatch) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(OSError, match=r"0.00 GB free, but the checkpoint takes"):
        checkpoint.write(recorded(), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small_chunks")
def test_a_full_disk_leaves_no_part_of_a_file(tmp_path, monkeypatch) -> None:
    write, calls = os.pwrite, []

    def fail_later(*arguments) -> int:
        calls.append(arguments)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        return write(*arguments)

    monkeypatch.setattr(os, "pwrite", fail_later)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.write(recorded(), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_directory_is_written_to_by_one_run_at_a_time(tmp_path) -> None:
    """The second fails, and the first goes on."""
    refused = []

    def again(done: int, total: int) -> None:
        with pytest.raises(OSError, match="by another run"):
            checkpoint.write(recorded(), tmp_path)
        refused.append(done)

    checkpoint.write(recorded(), tmp_path, progress=again)
    assert refused
    assert checkpoint.write(recorded(), tmp_path, verify=True).bytes == 0


@pytest.mark.parametrize("direct", [True, False])
def test_a_file_system_without_direct_writes(tmp_path, monkeypatch, direct: bool) -> None:
    """Refused as the file is opened, or, by some, as it is written."""
    checkpoint.write(recorded(), tmp_path / "want")
    opens, write = os.open, os.pwrite

    def refuse(path, flags, *mode):
        if flags & os.O_DIRECT and not direct:
            raise OSError(22, "Invalid argument")
        return opens(path, flags, *mode)

    def refuse_write(descriptor, data, offset):
        if fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(22, "Invalid argument")
        return write(descriptor, data[: 1 + len(data) // 2], offset)  # and in pieces of any length

    monkeypatch.setattr(os, "open", refuse)
    monkeypatch.setattr(os, "pwrite", refuse_write)
    checkpoint.write(recorded(), tmp_path / "have")
    assert contents(tmp_path / "have") == contents(tmp_path / "want")


def test_memory_does_not_grow_with_the_model(tmp_path) -> None:
    """0.8 GB of weights, one of them 0.5 GB: less than 300 MiB more than after the import."""
    code = """
        import sys
        import torch
        from torch import nn
        from fastinit.checkpoint import writing as checkpoint
        from fastinit import deferred

        def peak():
            lines = open("/proc/self/status").read().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))

        with deferred(7):
            model = nn.Sequential(nn.Embedding(60_000, 4096), nn.Linear(16384, 8192))
        before = peak()
        done = checkpoint.write(model, sys.argv[1], dtype=torch.bfloat16)
        print(done.bytes, (peak() - before) << 10)
    """
    if shutil.disk_usage(tmp_path).free < 2e9:
        pytest.skip("no room")
    size, grown = map(int, run(code, tmp_path).split())
    shutil.rmtree(tmp_path)
    assert size > 0.75e9
    assert grown < 300 << 20


def test_what_must_be_made_whole_has_a_bound(tmp_path) -> None:
    def large() -> nn.Module:
        layer = nn.Linear(16384, 8192, bias=False)
        nn.init.orthogonal_(layer.weight)
        return layer

    with pytest.raises(ValueError, match=r"weight \(orthogonal\) has 134,217,728 elements"):
        checkpoint.write(recorded(large), tmp_path)


@pytest.mark.parametrize(
    "size", ["", "0", "5", "5PB", "-1GB", "GB", "0.0001KB", "nanGB", "٥GB", 0, -5, 5.0, True]
)
def test_sizes_that_are_none(size) -> None:
    with pytest.raises(ValueError, match=r"shard size must be (as in 5GB|an int)"):
        checkpoint_files.parse_size(size)


def test_a_size_is_an_int_or_has_a_unit() -> None:
    sizes = [5, "1.5KB", "2GiB", " 3mb ", f"{'9' * 400}KB"]
    expected = [5, 1500, 2**31, 3 * 10**6, int("9" * 400) * 1000]
    assert list(map(checkpoint_files.parse_size, sizes)) == expected


def test_tensors_that_cannot_be_stored_are_named(tmp_path) -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("wide", torch.zeros(2, dtype=torch.complex128))
    with pytest.raises(ValueError, match="safetensors has no dtype for tensor wide"):
        checkpoint.write(model, tmp_path)
    named = nn.ParameterDict({"__metadata__": torch.ones(2)})  # what a header has beside tensors
    with pytest.raises(ValueError, match="safetensors has no tensors of the name __metadata__"):
        checkpoint.write(named, tmp_path)
    with pytest.raises(ValueError, match="not recorded by fastinit"):
        checkpoint.write(nn.Linear(2, 2, device="meta"), tmp_path)
    with pytest.raises(ValueError, match="floating-point"):
        checkpoint.write(nn.Linear(2, 2), tmp_path, dtype=torch.int8)


def test_what_the_user_has_in_the_directory_stays(tmp_path) -> None:
    (tmp_path / ".fastinit-mine").mkdir()
    (tmp_path / ".fastinit-mine" / "notes").write_text("mine")
    for name in (".fastinit-file", ".model.safetensors.partial", ".model-2.partial", "model.txt"):
        (tmp_path / name).write_text("mine")
    before = {path.name for path in tmp_path.iterdir()}
    left = files.partial_path(tmp_path / "model.safetensors")
    left.write_text("of a killed run")
    other = left.with_name(left.name.replace(files._machine(), "f" * 16))
    other.write_text("of another machine")
    with pytest.warns(UserWarning, match=re.escape(other.name)):
        checkpoint.write(recorded(), tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == before | {other.name, checkpoint_files.SINGLE}
    assert (tmp_path / ".fastinit-mine" / "notes").read_text() == "mine"


def test_two_writers_that_do_not_see_each_other(tmp_path, monkeypatch) -> None:
    """On a file system without locks: the second begins, and is killed, while the first writes."""
    checkpoint.write(recorded(), tmp_path / "whole")
    folder = tmp_path / "both"

    def no_locks(*args: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    second = []

    def meanwhile(done: int, total: int) -> None:
        code = """
            import errno, fcntl, os, signal, sys
            from tests.checkpoint import test_writing as tests
            def no_locks(*args):
                raise OSError(errno.ENOLCK, "No locks available")
            fcntl.flock, write = no_locks, os.pwrite
            def killed(descriptor, data, at):
                write(descriptor, data[:512], at)
                os.kill(os.getpid(), signal.SIGKILL)
            os.pwrite = killed
            tests.checkpoint.write(tests.recorded(), sys.argv[1])
        """
        second.append(warm.run(code, folder).returncode)

    checkpoint.write(recorded(), folder, progress=meanwhile)
    assert second == [-9]
    name = checkpoint_files.SINGLE
    assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("name", [checkpoint_files.SINGLE, checkpoint_files.INDEX, "config.json"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_what_is_no_file_is_named(tmp_path, name: str, overwrite: bool) -> None:
    for kind in ("directory", "link to nowhere"):
        folder = tmp_path / kind
        folder.mkdir()
        if kind == "directory":
            (folder / name).mkdir()
        else:
            (folder / name).symlink_to("nowhere")
        with pytest.raises(ValueError, match=f"has {name} in it, which is no file"):
            checkpoint.write(recorded(), folder, overwrite=overwrite)
        assert [path.name for path in folder.iterdir()] == [name]


@pytest.mark.usefixtures("small_chunks")
def test_verifying_computes_every_byte_again(tmp_path) -> None:
    said: list[tuple[int, int]] = []

    def write(**options) -> checkpoint.Written:
        said.clear()
        return checkpoint.write(
            recorded(),
            tmp_path,
            shard_size="9KB",
            progress=lambda done, total: said.append((done, total)),
            **options,
        )

    planned = write().layout
    whole = contents(tmp_path)
    done = write(verify=True)
    assert (done.verified, done.bytes, done.kept) == (planned.size, 0, len(planned.shards))
    assert said[-1] == (planned.size, planned.size)
    assert said == sorted(said)
    assert len(said) > len(planned.shards)  # as it goes on
    for shard in planned.shards:
        path = tmp_path / shard.file
        for tensor, at in places(shard):
            size = tensor.nbytes
            damaged = bytearray(whole[shard.file])
            before = bytes(damaged[at : at + size])
            damaged[at : at + size] = bytes(size) if any(before) else b"\1" * size
            first = next((i for i in range(size) if damaged[at + i] != before[i]), None)
            if first is None:
                continue
            path.write_bytes(damaged)
            assert write().bytes == 0  # by its size and header it is whole
            with pytest.raises(
                ValueError, match=rf"{shard.file} is damaged in {tensor.name}, at byte"
            ):
                write(verify=True)
            assert path.read_bytes() == damaged
        damaged = bytearray(whole[shard.file])
        damaged[-1] ^= 1
        path.write_bytes(damaged)
        assert write(verify=True, overwrite=True).bytes == shard.size
        assert said[-1][0] == said[-1][1] >= planned.size  # of the damaged one what was read, too
        assert contents(tmp_path) == whole
    (tmp_path / planned.shards[1].file).unlink()
    done = write(verify=True)
    assert done.verified + done.bytes == planned.size
    assert said[-1] == (planned.size, planned.size)
    assert contents(tmp_path) == whole


def places(shard: checkpoint_files.Shard) -> list[tuple[checkpoint_files.Stored, int]]:
    """(tensor, where it begins) of those that have bytes."""
    return [(tensor, at) for tensor, _, _, at in shard.within(0, shard.size) if tensor.nbytes]


def test_writing_needs_no_fcntl(tmp_path: Path) -> None:
    """Which Windows has not."""
    code = """
    import sys
    sys.modules["fcntl"] = None
    import torch
    from fastinit import Fill, Plan, checkpoint
    net = torch.nn.Linear(4, 2, device="meta")
    checkpoint.write(net, sys.argv[1], Plan({"weight": Fill.normal(0, 1), "bias": Fill.constant(0)}))
    """
    done = warm.run(code, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()
