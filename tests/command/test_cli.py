"""Commands, as a user sees them: output of 80 columns, errors in one line with exit status 2."""

import inspect
import json
import os
import re
import sys
import warnings

import pytest
import torch
import warm

from fastinit import checkpoint, recipes
from fastinit.backends import installation
from fastinit.base import memory, text
from fastinit.checkpoint import quantised
from fastinit.command import report
from fastinit.plan.plan import Fill, Plan

pytest.importorskip("typer")
pytest.importorskip("transformers")

from typer.testing import CliRunner

from fastinit.command import asked, cli, write

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 2000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


@pytest.fixture
def config(tmp_path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path)


@pytest.fixture(autouse=True)
def _threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", list(cli.Dtype))
def test_init_reports_what_was_asked_and_measured(config: str, dtype: cli.Dtype, tmp_path) -> None:
    saved = tmp_path / "plan.json"
    arguments = ["init", config, "--seed", "3", "--dtype", dtype.value, "--threads", "1"]
    result = CliRunner().invoke(cli.app, [*arguments, "--compare", "--out", str(saved)])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0] == f"LlamaForCausalLM, {dtype.value}, seed 3"
    assert lines[1].endswith("1 thread")
    embedding = next(line for line in lines if line.startswith("model.embed_tokens.weight")).split()
    assert embedding[1:4] == ["1", "128k", "normal"]
    assert float(embedding[4]) == 0.02
    # The std of 128,000 values is within 5 of its own std, 0.2 %, of the law's: level 6e-7.
    assert float(embedding[5]) == pytest.approx(0.02, rel=0.01)
    assert any(line.split()[:2] == ["input_layernorm.weight", "2"] for line in lines)
    memories = ("fresh", "warm") if sys.platform == "linux" else ("warm",)  # each for both
    for timing in ("fill, fresh memory", "fill, warm memory", "torch.nn.init, warm memory"):
        assert any(line.startswith(timing) for line in lines)
    said = lines[-1].removeprefix("fastinit is ")
    for memory_, part in zip(memories, said.split(", "), strict=True):
        assert any(line.startswith(f"torch.nn.init, {memory_} memory") for line in lines)
        assert re.match(rf"\d+\.\d .*in {memory_}", part), said
    assert Plan.load(saved).seed == 3


def test_a_recipe_is_named_in_place_of_a_plan(tmp_path) -> None:
    saved = tmp_path / "plan.json"
    named = ["init", "torch.nn:MultiheadAttention", "--plan", "torch_default", "--out", str(saved)]
    assert cli.main(named) == 2  # MultiheadAttention() needs sizes
    named[1] = "torch.nn:Transformer"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cli.main(named) == 0
        model = torch.nn.Transformer()
    assert Plan.load(saved) == Plan.from_model(model, recipes.torch_default)


def test_a_model_larger_than_memory_is_refused_before_it_is_allocated(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(memory, "available_bytes", lambda: 1000)
    assert cli.main(["init", config]) == 2
    assert "of memory are free" in capsys.readouterr().err


def test_write_says_what_it_did_and_goes_on(config: str, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    arguments = ["write", config, "--out", str(out), "--dtype", "bfloat16", "--shard-size", "200KB"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert not out.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json"]
    assert planned.startswith("LlamaForCausalLM, bfloat16, seed 0\n")
    for line in ("model-00001-of-00002.safetensors", "total", "both at once:", "GB are free"):
        assert line in planned
    assert max(map(len, planned.splitlines())) <= 80

    assert cli.main(arguments) == 0
    said = capsys.readouterr().out
    sizes = {path.name: path.stat().st_size for path in out.glob("*.safetensors")}
    assert all(f"{size:,}" in planned for size in sizes.values())
    assert f"2 shards, {sum(sizes.values()):,} bytes" in said
    assert "written in" in said
    (out / "model-00002-of-00002.safetensors").unlink()
    assert cli.main(arguments) == 0
    assert "1 of them was whole before and kept" in capsys.readouterr().out
    assert cli.main([*arguments, "--seed", "4"]) == 2
    assert "was written with seed 0, not 4" in capsys.readouterr().err
    assert cli.main([*arguments, "--seed", "4", "--overwrite"]) == 0


def test_write_in_a_format_keeps_the_rest_in_bfloat16(config: str, tmp_path, capsys) -> None:
    names = {*asked.Dtype.__members__, *quantised.SCHEMES}
    assert {stored.value for stored in asked.StoredAs} == names
    out = tmp_path / "out"
    arguments = ["write", config, "--out", str(out), "--dtype", "nvfp4"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert cli.main(arguments) == 0
    assert f"{(out / 'model.safetensors').stat().st_size:,}" in planned
    said = json.loads((out / "config.json").read_text())
    assert said["dtype"] == "bfloat16"
    assert said["quantization_config"]["format"] == "nvfp4-pack-quantized"


def test_write_in_formats_by_pattern(config: str, tmp_path, capsys) -> None:
    from safetensors.torch import load_file

    out = tmp_path / "out"
    by_pattern = ("--storage", "*.0.mlp.*=mxfp4", "--storage", "*.embed_tokens.*=bfloat16")
    assert cli.main(["write", config, "--out", str(out), *by_pattern]) == 0
    assert "mxfp4" in capsys.readouterr().out
    dtypes = {name: tensor.dtype for name, tensor in load_file(out / "model.safetensors").items()}
    assert dtypes["model.layers.0.mlp.up_proj.weight_packed"] == torch.uint8
    assert dtypes["model.layers.1.mlp.up_proj.weight"] == torch.float32
    assert dtypes["model.embed_tokens.weight"] == torch.bfloat16
    assert cli.main(["write", config, "--out", str(out), "--storage", "no.such=mxfp4"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("fastinit: --storage: no linear weight matches pattern no.such")


def test_a_saved_plan_goes_to_every_command(config: str, tmp_path, capsys) -> None:
    import safetensors.torch

    plan, out = tmp_path / "plan.json", tmp_path / "out"
    assert cli.main(["init", config, "--seed", "6", "--out", str(plan)]) == 0
    scaled = Plan.load(plan).scaled({"model.norm.weight": 3.0})
    scaled.save(plan)
    assert cli.main(["write", config, "--out", str(out), "--plan", str(plan)]) == 0
    stored = safetensors.torch.load_file(out / "model.safetensors")
    assert stored["model.norm.weight"].eq(3.0).all()
    for command in ("init", "inspect"):
        assert cli.main([command, config, "--plan", str(plan)]) == 0
    assert "seed 6" in capsys.readouterr().out
    assert cli.main(["write", "torch.nn:Identity", "--out", str(out), "--plan", str(plan)]) == 2
    assert "the plan does not fit" in capsys.readouterr().err


def test_help_has_examples(capsys) -> None:
    for command in ("init", "inspect", "coord-check", "write"):
        assert cli.main([command, "--help"]) == 0
        said = capsys.readouterr().out
        assert said.count(f"Example: python -m fastinit {command}") == 2
        assert all(word in said for word in ("MODEL", "--seed", "--dtype", "--plan", "--out"))


def test_families_and_functions_without_a_recipe(tmp_path, monkeypatch, capsys) -> None:
    fields = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "vocab_size": 90}
    config = {"model_type": "mamba", "state_size": 4, **fields}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert cli.main(["init", str(tmp_path), "--compare"]) == 0
    said = capsys.readouterr().out
    assert "torch.nn.init has no function for 2 parameters" in said
    assert max(map(len, said.splitlines())) <= 80
    (tmp_path / "tiny_net.py").write_text("from torch import nn\ndef f(): return nn.Linear(8, 4)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert cli.main(["inspect", "tiny_net:f", "--shape", "16x8"]) == 0
    assert "Linear, float32, normal input, 16 x 8" in capsys.readouterr().out
    assert cli.main(["write", "tiny_net:f", "--out", "out"]) == 0
    assert sorted(os.listdir("out")) == ["model.safetensors"]


def test_files_are_as_large_as_those_of_checkpoint_write() -> None:
    """Which the command line imports only when it writes: it stands twice."""
    default = inspect.signature(write.write_command).parameters["shard_size"].default
    assert default == inspect.signature(checkpoint.write).parameters["shard_size"].default


def test_info_says_what_the_backends_say(monkeypatch: pytest.MonkeyPatch) -> None:
    said = installation.info()
    monkeypatch.setattr(installation, "info", lambda: said)  # it times laws anew each time
    result = CliRunner().invoke(cli.app, ["info"])
    assert result.exit_code == 0
    assert result.stdout.strip() == report.info(said).strip()
    assert torch.__version__ in result.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info"], torch.__version__),
        (["--version"], installation.version()),
        (["info", "--json"], ""),
        (["init", "gpt2-xl"], ""),
    ],
)
def test_what_works_without_typer(arguments: list[str], said: str) -> None:
    hidden = "import sys; sys.modules['typer'] = None; from fastinit.__main__ import main; "
    done = warm.run(hidden + f"sys.exit(main({arguments!r}))")
    assert done.returncode == (0 if said else 2), done.stderr
    assert said in done.stdout
    if not said:
        assert done.stderr.count("\n") == 1
        assert "pip install typer rich" in done.stderr


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_measured_moments_are_those_of_all_elements(dtype: torch.dtype) -> None:
    model = torch.nn.Conv2d(64, 700, (3, 3), bias=False, dtype=dtype)
    model.to(memory_format=torch.channels_last)
    plan = Plan({"weight": Fill.normal(1.0, 0.5)})
    plan.apply_(model)
    [(group, moments)] = report.measure(model, plan)
    values = model.weight.detach().double()
    assert group.elements == moments.count == values.numel()
    # Of bfloat16, float32 sums of 32 values; of the others, float64 sums.
    assert moments.mean == pytest.approx(values.mean().item(), rel=1e-6)
    assert moments.std == pytest.approx(values.std(correction=0).item(), rel=1e-6)


def test_names_that_do_not_fit_have_lines_of_their_own() -> None:
    table = text.table([("name", "n"), ("x" * 70, "1"), ("y", "2")], "<>", width=40)
    head, rule, *lines = table.splitlines()
    assert (len(head), rule) == (40, "-" * 40)
    assert lines == ["x" * 40, "x" * 30, f"{'1':>40}", f"y{'2':>39}"]


def test_inspect_shows_every_layer_and_draws(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "config.json"
    fields = {"model_type": "gpt2", "vocab_size": 300, "n_positions": 32, "n_embd": 32}
    config.write_text(json.dumps({**fields, "n_layer": 2, "n_head": 2}))
    plot = tmp_path / "depth.png"
    arguments = ["inspect", str(config), "--length", "16", "--plot", str(plot)]
    assert cli.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "GPT2LMHeadModel, float32, 1 x 16 random tokens" in shown
    for name in ("transformer.wte", "t.h.1.mlp.c_proj", "lm_head"):
        assert f"\n{name} " in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert cli.main(["inspect", "nobody"]) == 2
    assert "is no file, none of" in capsys.readouterr().err
