"""Published rates of GPUs, of which the ledger of machine code predicts what a kernel reaches.

Lanes per clock and multiprocessor are those of "Throughput of Native Arithmetic Instructions", CUDA C++
Best Practices Guide 13, 12.1.1 (docs.nvidia.com/cuda/cuda-c-best-practices-guide), the least where
instructions of one unit have several: a 2-way instruction counts once, but one of two float32 numbers
twice. Clocks are boost clocks, bandwidths those of the data sheets; no kernel reaches either for long,
so shares are upper bounds.
"""

from __future__ import annotations

from typing import NamedTuple


class GPU(NamedTuple):
    name: str
    code: str
    """The architecture of the machine code that runs there."""
    processors: int
    clock: float
    """Hz."""
    bandwidth: float
    """Bytes per second that memory delivers."""
    floats: int
    """Lanes per clock and multiprocessor: float32 add, multiply, fma; and what else its unit does."""
    integers: int
    """Comparisons, minima and maxima, logic, additions of integers."""
    doubles: int
    """float64, and conversions from and to it."""
    source: str

    @property
    def issued(self) -> int:
        """Lanes per clock and multiprocessor of all instructions: four schedulers' warps."""
        return 128


GPUS = (
    GPU(
        *("A100", "80", 108, 1.41e9, 2.039e12, 64, 64, 16),
        "glennklockwood.com/garden/processors/A100 (80G SXM4); pc2 wiki of upb (1410 MHz)",
    ),
    GPU(
        *("H100", "90", 132, 1.98e9, 3.35e12, 128, 64, 16),
        "glennklockwood.com/garden/processors/h100 (SXM5)",
    ),
    GPU(
        *("H200", "90", 132, 1.98e9, 4.8e12, 128, 64, 16),
        "hmc-tech.com/gpu/nvidia-h100-vs-nvidia-h200-sxm-vs-nvidia-gb200",
    ),
    GPU(
        # 75 TFLOPS of float32: 148 multiprocessors, 128 lanes, two operations.
        *("B200", "100", 148, 75e12 / (148 * 128 * 2), 8e12, 128, 64, 16),
        "verda.com/blog/gb300-nvl72-architecture (7.7 to 8 TB/s); hmc-tech.com (18944 lanes)",
    ),
    GPU(
        # 1.25 TFLOPS of float64: two lanes.
        *("B300", "100", 148, 75e12 / (148 * 128 * 2), 8e12, 128, 64, 2),
        "verda.com/blog/gb300-nvl72-architecture; glennklockwood.com/garden/processors/B300",
    ),
    GPU(
        *("RTX 4090", "80", 128, 2.52e9, 1.008e12, 128, 64, 2),
        "thefpsreview.com/gpu-family/nvidia-geforce-rtx-4090-gpu-family-specifications",
    ),
    GPU(
        *("RTX 5090", "120", 170, 2.407e9, 1.792e12, 128, 64, 2),
        "pocketmags.com/linux-format-magazine/may-2025/articles/nvidia-geforce-rtx-5090",
    ),
    GPU(
        *("L40S", "80", 142, 2.52e9, 0.864e12, 128, 64, 2),
        "itcreations.com/nvidia-gpu/nvidia-l40s-gpu-accelerator; computizer.com (142 multiprocessors)",
    ),
)
