"""Machines by name: what their data sheets say, and the share of it that programs are known to reach.

The shares are the constants of the cost model (docs/parallelism.md tells where each comes from).
"""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """One kind of GPU in one kind of node.

    Attributes:
        title: GPU and connections, in words.
        memory: bytes on a GPU.
        matrix: FLOP/s of dense 16 bit matrix products, by the data sheet.
        matrix_float32: the same in float32 (no TF32).
        matrix_share: the share of it that a large product reaches.
        bandwidth: bytes/s of the GPU's memory that a streaming kernel reaches.
        gpus: in a node.
        link: bytes/s that a GPU sends inside its node in a ring.
        network: bytes/s that a node sends to others, all adapters together.
        link_latency, network_latency: seconds of one step of a ring.
        launch: seconds that the shortest kernel takes, launching included.
    """

    title: str
    memory: int
    matrix: float
    matrix_float32: float
    matrix_share: float
    bandwidth: float
    gpus: int
    link: float
    network: float
    link_latency: float = 2e-6
    network_latency: float = 8e-6
    launch: float = 5e-6


HARDWARE = {
    "v100-32g": Hardware(
        title="V100 32 GB, 16 to a node (DGX-2H): NVLink 150 GB/s, 8 x 100 Gbit/s InfiniBand",
        memory=32 * GIB, matrix=130e12, matrix_float32=16.4e12, matrix_share=0.5, bandwidth=0.8 * 980e9,
        gpus=16, link=0.85 * 150e9, network=0.7 * 100e9, link_latency=5e-6, network_latency=15e-6, launch=8e-6,
    ),
    "a100": Hardware(
        title="A100 80 GB SXM, 8 to a node: NVLink 300 GB/s, 8 x 200 Gbit/s InfiniBand",
        memory=80 * GIB, matrix=312e12, matrix_float32=19.5e12, matrix_share=0.8, bandwidth=0.85 * 2039e9,
        gpus=8, link=0.78 * 300e9, network=0.85 * 200e9,
    ),
    "h100": Hardware(
        title="H100 80 GB SXM, 8 to a node: NVLink 450 GB/s, 8 x 400 Gbit/s InfiniBand",
        memory=80 * GIB, matrix=989e12, matrix_float32=67e12, matrix_share=0.7, bandwidth=0.88 * 3350e9,
        gpus=8, link=0.8 * 450e9, network=0.85 * 400e9,
    ),
    "h200": Hardware(
        title="H200 141 GB SXM, 8 to a node: NVLink 450 GB/s, 8 x 400 Gbit/s InfiniBand",
        memory=141 * 10**9, matrix=989e12, matrix_float32=67e12, matrix_share=0.8, bandwidth=0.9 * 4800e9,
        gpus=8, link=0.8 * 450e9, network=0.85 * 400e9,
    ),
}  # fmt: skip
