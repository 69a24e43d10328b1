import torch

from megabert.planning.recorder import Collective, Recorder


def test_products_and_traffic_are_counted_forward_and_backward():
    left, right = torch.ones(8, 32, requires_grad=True), torch.ones(32, 16, requires_grad=True)
    with Recorder() as recorder:
        recorder.phase = "forward"
        product = left @ right
        recorder.phase = "backward"
        product.backward(torch.ones(8, 16))
    (forward,) = [each for each in recorder.operations["forward"] if each.kind == "matrix"]
    assert forward.flops == 2 * 8 * 32 * 16
    assert forward.contraction == 32
    assert forward.size == 4 * (8 * 32 + 32 * 16 + 8 * 16)
    backward = [(each.flops, count) for each, count in recorder.operations["backward"].items() if each.kind == "matrix"]
    assert sum(flops * count for flops, count in backward) == 2 * forward.flops


def test_views_cost_nothing_and_changes_in_place_write_once():
    tensor = torch.ones(10, 10)
    with Recorder() as recorder:
        tensor.view(100).t().unsqueeze(0)
        assert not recorder.operations
        tensor.add_(1.0)
    ((operation, count),) = recorder.operations["step"].items()
    assert (operation.size, count) == (2 * 400, 1)


def test_the_peak_counts_what_lives_at_once_but_not_what_stays():
    with Recorder() as recorder:
        stays = torch.zeros(1000)  # 4000 bytes
        first = torch.empty(100) + 1  # 400, and its empty one
        del first
        second, third = torch.empty(200), torch.empty(300)
        del second, third
        peak = recorder.close()
    assert peak == 4 * (200 + 300)
    assert stays.numel() == 1000
    # The zeros outlive the step: they are made once, and the second step has no such operation.
    assert all(operation.size != 4000 or not count for operation, count in recorder.operations["step"].items())


def test_bytes_on_the_wire_are_those_of_a_ring():
    ranks = (0, 1, 2, 3)
    assert Collective("all-reduce", ranks, 1000).wire == 1500
    assert Collective("all-gather", ranks, 1000).wire == 750
    assert Collective("reduce-scatter", ranks, 1000).wire == 750
    assert Collective("send", (0, 1), 1000).wire == 1000
    assert Collective("receive", (0, 1), 1000).wire == 0
