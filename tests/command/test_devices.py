"""Which device a command takes: a function of what was asked and of what is there, without a GPU."""

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from fastinit.backends import choose as backends
from fastinit.command import devices
from fastinit.command.devices import CPU, Choice, Gpu
from fastinit.plan.parameters import held

GB = 10**9
SMALL = Gpu(0, "Small", 1 * GB, 8 * GB)
BROKEN = Gpu(0, "Old", 0, 0, "CUDA error: no kernel image is available for execution on the device")
LARGE = Gpu(1, "Large", 70 * GB, 80 * GB)
OTHER = Gpu(2, "Other", 70 * GB, 80 * GB)
NO_DRIVER = "Found no NVIDIA driver on your system"
TOO_LITTLE = r"cuda:0 \(Small\) has 1.0 of 8.0 GB free, but 10.3 GB are needed"


@pytest.mark.parametrize(
    ("asked", "gpus", "taken", "why"),
    [
        ("cpu", [LARGE], "cpu", "as asked"),
        ("auto", [], "cpu", f"no GPU can be used: {NO_DRIVER}"),
        ("auto", [SMALL], "cpu", TOO_LITTLE),
        ("auto", [BROKEN], "cpu", r"cuda:0 \(Old\): CUDA error: no kernel image"),
        ("auto", [SMALL, LARGE], "cuda:1", "Large, 70.0 of 80.0 GB free"),
        ("auto", [BROKEN, LARGE, OTHER], "cuda:1", "Large"),
        ("auto", [LARGE, OTHER], "cuda:1", "Large"),
        ("cuda", [SMALL, LARGE, OTHER], "cuda:1", "Large"),
        ("cuda", [SMALL], None, f"--device cuda: {TOO_LITTLE}; --device auto takes the CPU"),
        ("cuda", [BROKEN], None, "no kernel image"),
        ("cuda", [], None, f"--device cuda: no GPU can be used: {NO_DRIVER}"),
        ("cuda:2", [SMALL, LARGE, OTHER], "cuda:2", "Other"),
        ("cuda:0", [SMALL, LARGE], None, TOO_LITTLE),
        ("cuda:7", [SMALL, LARGE], None, "there is no cuda:7, only cuda:0, cuda:1"),
        ("cuda:7", [], None, NO_DRIVER),
    ],
)
def test_the_choice(asked: str, gpus: list[Gpu], taken: str | None, why: str) -> None:
    if taken is None:
        with pytest.raises(ValueError, match=why):
            devices.choose(asked, 10 * GB, gpus, NO_DRIVER)
        return
    choice = devices.choose(asked, 10 * GB, gpus, NO_DRIVER)
    assert choice.device == torch.device(taken)
    assert choice.automatic is (asked == "auto")
    assert re.search(why, choice.why)


@pytest.mark.parametrize("free", [0, devices.MARGIN - 1, devices.MARGIN])
def test_a_margin_is_left(free: int) -> None:
    gpu = Gpu(0, "Any", 1000 + free, GB)
    assert devices.choose("auto", 1000, [gpu], "").device.type == (
        "cuda" if free == devices.MARGIN else "cpu"
    )


@pytest.mark.parametrize(
    "asked", ["", "gpu", "cuda:", "cuda:-1", "cuda:1.5", "cuda:x", "mps", "CPU"]
)
def test_other_devices_are_refused(asked: str) -> None:
    with pytest.raises(ValueError, match="--device must be auto, cpu, cuda or cuda:N, but got"):
        devices.choose(asked, 0, [LARGE], "")


# What torch raises, in its own words (c10/cuda/CUDAFunctions.cpp, torch/cuda/__init__.py).
@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (
            AssertionError("Torch not compiled with CUDA enabled"),
            "this torch is built without CUDA",
        ),
        (
            RuntimeError(
                "Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and "
                "installed a driver from http://www.nvidia.com/Download/index.aspx"
            ),
            "Found no NVIDIA driver on your system",
        ),
        (
            RuntimeError(
                "The NVIDIA driver on your system is too old (found version 11040). Please update your "
                "GPU driver by downloading and installing a new version"
            ),
            "The NVIDIA driver on your system is too old (found version 11040)",
        ),
        (RuntimeError("No CUDA GPUs are available"), "No CUDA GPUs are available"),
        (
            RuntimeError(
                "Unexpected error from cudaGetDeviceCount(). Did you run some cuda functions before "
                "calling NumCudaDevices() that might have already set an error? Error 804: forward "
                "compatibility was attempted on non supported HW"
            ),
            "Unexpected error from cudaGetDeviceCount() (Error 804: forward compatibility was attempted "
            "on non supported HW)",
        ),
        (
            RuntimeError(
                "CUDA error: no kernel image is available for execution on the device\nCUDA kernel "
                "errors might be asynchronously reported at some other API call"
            ),
            "CUDA error: no kernel image is available for execution on the device",
        ),
    ],
)
def test_torch_s_reasons_are_one_line_without_advice(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def init() -> None:
        raise error

    monkeypatch.setattr(torch.cuda, "init", init)
    assert devices.found() == ([], reason)


def test_a_gpu_on_which_nothing_runs_is_found_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError(
            "CUDA error: all CUDA-capable devices are busy or unavailable\nCUDA kernel errors"
        )

    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device}")
    monkeypatch.setattr(backends, "choose", fails)
    gpus, missing = devices.found()
    assert [gpu.number for gpu in gpus] == [0, 1]
    assert {gpu.problem for gpu in gpus} == {
        "CUDA error: all CUDA-capable devices are busy or unavailable"
    }
    assert devices.choose("auto", 0, gpus, missing).device == CPU


def test_a_gpu_that_only_the_reference_serves_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    monkeypatch.setattr(backends, "BACKENDS", backends.BACKENDS[-1:])
    gpus, missing = devices.found()
    choice = devices.choose("auto", 0, gpus, missing)
    assert choice.device == CPU
    assert "only the slow reference" in choice.why


@pytest.mark.parametrize("automatic", [True, False])
def test_a_gpu_that_runs_out_of_memory(automatic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def work(choice: Choice) -> str:
        tried.append(choice.device.type)
        if choice.device.type == "cuda":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return str(choice)

    choice = Choice(torch.device("cuda", 1), "Large", automatic)
    if automatic:
        assert choice.attempt(work) == "on cpu: cuda:1 ran out of memory"
        assert tried == ["cuda", "cpu"]
    else:
        with pytest.raises(torch.OutOfMemoryError):
            choice.attempt(work)


def test_memory_is_held_within_a_block_alone() -> None:
    net = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2, device="meta"), nn.BatchNorm1d(2))
    net.append(nn.Linear(2, 2, bias=False))
    net[3].weight = net[1].weight  # tied
    before = dict(net.named_parameters(remove_duplicate=False))

    def fail_within() -> None:
        with held(net, "cpu"), devices.buffers_on(net, torch.device("meta")):
            assert not any(parameter.is_meta for parameter in net.parameters())
            assert net[3].weight is net[1].weight
            assert all(buffer.is_meta for buffer in net.buffers())
            raise KeyError

    with pytest.raises(KeyError):
        fail_within()
    after = dict(net.named_parameters(remove_duplicate=False))
    assert all(after[name] is parameter for name, parameter in before.items())
    assert not any(buffer.is_meta for buffer in net.buffers())


def test_the_output_says_where_and_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    pytest.importorskip("typer")
    from fastinit.command import cli

    monkeypatch.setattr(devices, "found", lambda: ([SMALL._replace(free=0)], ""))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one_net.py").write_text("from torch import nn\ndef f(): return nn.Linear(8, 4)\n")
    net = "one_net:f"
    for arguments, times in (
        (["init", net], 1),
        (["init", net, "--device", "cpu", "--device", "auto"], 1),  # the same one: once
    ):
        assert cli.main(arguments) == 0
        said = capsys.readouterr().out
        assert said.count("on cpu: cuda:0 (Small) has 0.0 of 8.0 GB free") == times
        assert said.count("std measured") == 1
        assert max(map(len, said.splitlines())) <= 80
    assert cli.main(["inspect", net, "--shape", "4x8"]) == 0
    assert "on cpu: cuda:0 (Small) has 0.0 of 8.0 GB free" in capsys.readouterr().out
    for arguments in (["init", net], ["inspect", net, "--shape", "4x8"]):
        assert cli.main([*arguments, "--device", "cuda"]) == 2
        printed = capsys.readouterr()
        assert "--device auto takes the CPU" in printed.err
        assert printed.out == ""


def test_what_init_says_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text alone: memory, clock and backend are the CPU's (tests/test_gpu.py has the rest)."""
    pytest.importorskip("rich")
    from fastinit.command import timed
    from fastinit.plan.plan import Plan
    from fastinit.recipes import torch_default

    native = backends.choose(CPU)
    monkeypatch.setattr(timed, "held", lambda model, device: held(model, "cpu"))
    monkeypatch.setattr(devices, "clock", lambda device: lambda work: (work(), 0.25)[1])
    monkeypatch.setattr(backends, "choose", lambda *_: native)
    net = nn.Linear(8, 4, device="meta")
    place = Choice(torch.device("cuda", 1), "Large", automatic=True)
    said, data = timed.initialised(net, Plan.from_model(net, torch_default), [], True, place)
    assert said.startswith("on cuda:1: Large\n")
    rows = [f"fill by {native.name}, first run", f"fill by {native.name}, later runs"]
    rows += ["torch.nn.init, first run", "torch.nn.init, later runs"]
    for row in rows:
        assert f"\n{row} " in said
    assert said.endswith(
        "fastinit is 1.0 times as fast as torch.nn.init in first run, 1.0 in later"
    )
    assert max(map(len, said.splitlines())) <= 80
    assert net.weight.is_meta
    assert data["device"] == "cuda:1"
    assert list(data["times torch.nn.init"].values()) == [1.0, 1.0]
