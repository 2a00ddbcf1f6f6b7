"""How fast GPUs are, by their makers, and how long a counted cost takes on one."""

from collections.abc import Mapping
from dataclasses import dataclass

# Of the peak, what large matrix products and copies of eager PyTorch reach in practice.
FLOPS_SHARE, BANDWIDTH_SHARE, LINK_SHARE = 0.5, 0.8, 0.7
# An operation of eager PyTorch takes this long to start, however small it is.
START_S = 8e-6


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One GPU by its data sheet.

    Units: `*_tflops` in 10^12 operations a second, dense, with float32 sums; `*_gb_s` in 10^9 bytes a second; `link`
    in one direction, between GPUs of one machine.
    """

    name: str
    memory_gb: float
    float32_tflops: float
    half_tflops: float
    memory_gb_s: float
    link_gb_s: float
    source: str

    def seconds(self, calls: Mapping[tuple[int, int], int], *, half: bool) -> float:
        """Return how long operations take, each as long as its arithmetic, its bytes or its start, the longest."""
        flops_s = (self.half_tflops if half else self.float32_tflops) * 1e12 * FLOPS_SHARE
        bytes_s = self.memory_gb_s * 1e9 * BANDWIDTH_SHARE
        return sum(
            count * max(flops / flops_s, size / bytes_s, START_S) for (flops, size), count in calls.items()
        )

    def copy_seconds(self, size: float) -> float:
        """Return how long reading and writing so many bytes takes."""
        return size / (self.memory_gb_s * 1e9 * BANDWIDTH_SHARE)

    def link_seconds(self, size: float) -> float:
        """Return how long sending so many bytes to other GPUs takes."""
        return size / (self.link_gb_s * 1e9 * LINK_SHARE)


_PCIE_4_GB_S = 32.0

GPUS: tuple[Gpu, ...] = (
    Gpu(
        name="RTX 3090",
        memory_gb=24,
        float32_tflops=35.6,
        half_tflops=71,
        memory_gb_s=936,
        link_gb_s=_PCIE_4_GB_S,
        source="NVIDIA Ampere GA102 GPU Architecture white paper, table of GeForce RTX 3090",
    ),
    Gpu(
        name="RTX 4090",
        memory_gb=24,
        float32_tflops=82.6,
        half_tflops=165.2,
        memory_gb_s=1008,
        link_gb_s=_PCIE_4_GB_S,
        source="NVIDIA Ada GPU Architecture white paper, appendix A",
    ),
    Gpu(
        name="L40S",
        memory_gb=48,
        float32_tflops=91.6,
        half_tflops=362,
        memory_gb_s=864,
        link_gb_s=_PCIE_4_GB_S,
        source="NVIDIA L40S data sheet",
    ),
    Gpu(
        name="A100 80 GB",
        memory_gb=80,
        float32_tflops=19.5,
        half_tflops=312,
        memory_gb_s=2039,
        link_gb_s=300,
        source="NVIDIA A100 data sheet, SXM",
    ),
    Gpu(
        name="H100",
        memory_gb=80,
        float32_tflops=67,
        half_tflops=989,
        memory_gb_s=3350,
        link_gb_s=450,
        source="NVIDIA H100 data sheet, SXM (half of the figures with sparsity)",
    ),
    Gpu(
        name="H200",
        memory_gb=141,
        float32_tflops=67,
        half_tflops=989,
        memory_gb_s=4800,
        link_gb_s=450,
        source="NVIDIA H200 data sheet, SXM (half of the figures with sparsity)",
    ),
)
