"""``python -m benchmarks.larger_than_memory``: LSUV of a Llama-shaped model that is never in memory.

By default Llama-2-13B's sizes, 52 GB in float32. Prints the peak of the process.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

import fastinit
from benchmarks.materialize import kibibytes
from benchmarks.timing import machine


def main() -> None:
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=40)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--plan", type=Path, help="save the resulting plan to this file")
    parser.add_argument("--out", type=Path, help="write the results to this file as JSON")
    options = parser.parse_args()
    config = transformers.LlamaConfig(
        hidden_size=5120,
        intermediate_size=13824,
        num_hidden_layers=options.layers,
        num_attention_heads=40,
        vocab_size=32000,
    )
    before = kibibytes("VmRSS")
    begun = time.perf_counter()
    with fastinit.deferred(seed=0):
        model = transformers.LlamaForCausalLM(config).eval()
    tokens = torch.randint(32000, (1, options.tokens), generator=torch.Generator().manual_seed(0))
    result = fastinit.lsuv_(model, input_ids=tokens, use_cache=False)
    seconds = time.perf_counter() - begun
    assert result.plan is not None
    found = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "bytes": sum(parameter.nbytes for parameter in model.parameters()),
        "layers": len(result.layers),
        "seconds": seconds,
        "peak": kibibytes("VmHWM") * 1024,
        "before": before * 1024,
        "plan_bytes": len(result.plan.to_json()),
        "largest_deviation": max(abs(measured.std - 1) for measured in result.layers),
    }
    if options.plan:
        result.plan.save(options.plan)
    print(
        f"{found['parameters'] / 1e9:.2f} billion parameters, {found['bytes'] / 1e9:.1f} GB: "
        f"LSUV of {found['layers']} layers in {seconds:.1f} s, peak memory "
        f"{found['peak'] / 2**30:.2f} GiB ({before / 2**20:.2f} GiB before), a plan of "
        f"{found['plan_bytes']:,} bytes, largest |std - 1| {found['largest_deviation']:.1e}"
    )
    if options.out:
        saved = {"machine": machine(), "tokens": options.tokens, **found}
        options.out.write_text(json.dumps(saved, indent=1) + "\n")


if __name__ == "__main__":
    main()
