"""What the step model takes each GPU of the catalog to reach. No GPU has been measured: all are assumptions.

Peaks are those of NVIDIA's data sheets, dense (a sparse figure is halved), as remembered and not read here: memory in
10⁹ bytes/s, 16-bit and fp8 matrix products in 10¹² FLOP/s. What is reached of them is assumed to be what the project
aims at on an H100: 80 % of the bandwidth and 60 % of the peak. Published decode rates lie on both sides of the first:
8.03 G weights in bfloat16 in 5.1 ms on an H100 is 94 %, and 107 tokens/s of Llama-7B on an A100 80GB 71 %.

Links: bus bandwidths of 8 GPUs as reported for NCCL: A100 about 200 GB/s (NVIDIA/nccl-tests#149), Hopper 370 with rings
(NVIDIA/nccl-tests#212); 0.8 of one direction for V100 (150 GB/s) and B200 (900). Over PCIe it is what the host's
processor and memory leave (NVIDIA/nccl#1639: 28 GB/s at best on new bare metal); 10 GB/s for PCIe 4 and 5 GB/s for
PCIe 3 are cautious guesses for virtual machines. Latencies: 6 µs for 2 GPUs over NVLink inside of a CUDA graph
(NVIDIA/nccl#1259), and 42 µs for 8 over PCIe (NVIDIA/nccl#1530); what lies between is spread over the hops.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.step_model import Link, Rates
from runtime.sizing import Gpu

BANDWIDTH_REACHED = 0.8
PEAK_REACHED = 0.6
STEP_S = 0.0005  # a CUDA graph's launch, sampling, and what of planning is not overlapped; a guess

PCIE3 = Link("PCIe 3", 5e9, 14e-6, 28e-6 / 12)
PCIE4 = Link("PCIe 4", 10e9, 14e-6, 28e-6 / 12)
NVLINK_V100 = Link("NVLink (V100)", 120e9, 6e-6, 1e-6)
NVLINK_A100 = Link("NVLink (A100)", 200e9, 6e-6, 1e-6)
NVLINK_HOPPER = Link("NVLink (Hopper)", 370e9, 6e-6, 1e-6)
NVLINK_B200 = Link("NVLink (B200)", 720e9, 6e-6, 1e-6)


@dataclass(frozen=True, slots=True)
class Peak:
    """Of one GPU: bytes/s, FLOP/s of 16-bit products and of fp8 (None without units for it), and its link to others."""

    bytes_per_s: float
    half_flops: float
    fp8_flops: float | None
    link: Link


def _peak(gb_s: float, half_tflops: float, fp8_tflops: float | None, link: Link) -> Peak:
    return Peak(gb_s * 1e9, half_tflops * 1e12, None if fp8_tflops is None else fp8_tflops * 1e12, link)


PEAKS: dict[str, Peak] = {
    "T4": _peak(320, 65, None, PCIE3),
    "V100 16GB": _peak(900, 125, None, NVLINK_V100),
    "V100 32GB": _peak(900, 125, None, NVLINK_V100),
    "A10": _peak(600, 125, None, PCIE4),
    "A10G": _peak(600, 70, None, PCIE4),
    "A100 40GB": _peak(1555, 312, None, NVLINK_A100),
    "A100 80GB": _peak(2039, 312, None, NVLINK_A100),
    "L4": _peak(300, 121, 242, PCIE4),
    "L20": _peak(864, 119.5, 239, PCIE4),
    "L40S": _peak(864, 362, 733, PCIE4),
    "H20": _peak(4000, 148, 296, NVLINK_HOPPER),
    "H100": _peak(3350, 989, 1979, NVLINK_HOPPER),
    "H200": _peak(4800, 989, 1979, NVLINK_HOPPER),
    "B200": _peak(8000, 2250, 4500, NVLINK_B200),
}


def assumed_rates(gpu: Gpu, quantization: str | None) -> Rates:
    """Of one GPU; fp8 weights on a GPU without fp8 units are multiplied in 16 bits."""
    peak = PEAKS[gpu.kind]
    flops = peak.fp8_flops if quantization == "fp8" and peak.fp8_flops else peak.half_flops
    return Rates(BANDWIDTH_REACHED * peak.bytes_per_s, PEAK_REACHED * flops, STEP_S)
