import dataclasses

import pytest

from megabert.parallel.mesh import Layout
from megabert.planning.cost import Work, axis_of, collective_seconds, seconds_of, times_of
from megabert.planning.hardware import HARDWARE
from megabert.planning.recorder import Collective, Operation

H100 = HARDWARE["h100"]
LAYOUT = Layout(world=32, tensor=4, pipeline=2, data=4)


def all_reduce(ranks, size=10**9):
    return collective_seconds(Collective("all-reduce", tuple(ranks), size), H100)


def test_the_longest_of_arithmetic_traffic_and_launch_counts():
    product = Operation("matrix", 10**13, 10**6, 4096, True)
    assert seconds_of(product, H100) == pytest.approx(10**13 / (H100.matrix * H100.matrix_share) * (4096 + 128) / 4096)
    assert seconds_of(Operation("memory", 0, 10**9, 0, True), H100) == 10**9 / H100.bandwidth
    assert seconds_of(Operation("memory", 0, 8, 0, True), H100) == H100.launch


def test_a_ring_inside_a_node_goes_at_the_speed_of_its_links():
    assert all_reduce(range(8)) == pytest.approx(2 * 7 / 8 * 1e9 / H100.link, rel=0.05)


def test_between_nodes_groups_share_the_network():
    # 64 GPUs of 8 nodes in one group have all of the nodes' network; one GPU of each node has an eighth of it.
    assert all_reduce(range(64)) == pytest.approx(2 * 63 / 64 * 1e9 / H100.network, rel=0.1)
    assert all_reduce(range(0, 64, 8)) == pytest.approx(2 * 7 / 8 * 1e9 / (H100.network / 8), rel=0.05)


def test_axes_are_known_by_their_ranks():
    assert axis_of(Collective("all-reduce", (0, 1, 2, 3), 1), LAYOUT) == "tensor"
    assert axis_of(Collective("all-reduce", (1, 5, 9, 13), 1), LAYOUT) == "data"
    assert axis_of(Collective("send", (0, 16), 1), LAYOUT) == "pipeline"
    assert axis_of(Collective("all-reduce", tuple(range(32)), 1), LAYOUT) == "all"


def test_a_pipeline_waits_for_its_stages_and_interleaving_shortens_that():
    operation = Operation("matrix", 10**12, 10**6, 4096, True)
    work = Work(
        operations={operation: 8}, collectives={}, update_operations={}, update_collectives={}, last={operation: 1}
    )
    plain = times_of(work, LAYOUT, H100, 8, overlap=True)
    assert plain.bubble == pytest.approx(plain.compute / 8)
    pieces = times_of(work, dataclasses.replace(LAYOUT, virtual=4), H100, 8, overlap=True)
    assert pieces.bubble == pytest.approx(plain.bubble / 4)


def test_overlap_hides_gradients_behind_the_last_backward_pass():
    operation = Operation("matrix", 10**14, 10**6, 4096, True)
    message = Collective("all-reduce", (0, 4, 8, 12), 10**9)
    work = Work(
        operations={operation: 1}, collectives={message: 1}, update_operations={}, update_collectives={},
        last={operation: 1},
    )  # fmt: skip
    hidden = times_of(work, LAYOUT, H100, 1, overlap=True).data
    assert 0 < hidden < times_of(work, LAYOUT, H100, 1, overlap=False).data == collective_seconds(message, H100)
