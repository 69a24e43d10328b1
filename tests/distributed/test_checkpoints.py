import pytest
import torch

from megabert.formats import native
from megabert.parallel.mesh import Layout
from megabert.training import resume, stored
from megabert.training.resume import find
from megabert.training.sharded import Pieces

from .jobs import run, succeed, world
from .runs import alone, metrics, together

TENSOR_DATA = Layout(world=4, tensor=2, data=2)
TENSOR_SHARDED = Layout(world=4, tensor=2, data=2, sequence_parallel=True, sharding="full")
TENSOR_STAGES = Layout(world=4, tensor=2, pipeline=2)
REPORTS = {"log_params_norm": True, "log_num_zeros_in_grad": True}
FULL = Layout(world=4, data=4, sharding="full")


def same_layout(folder, names):
    with world(60) as found:
        for name, layout in names.items():
            # Dropout shows whether the random state is gone on from; bf16, whether the masters are.
            changes = {"dropout": 0.1, "bf16": name != "tensor x data", "train_iters": 8}
            together(found, layout, folder / name / "whole", **changes).fit()
            together(found, layout, folder / name / "parts", exit_interval=5, **changes).fit()
            torch.manual_seed(99)
            outcome = together(found, layout, folder / name / "parts", **changes).fit()
            assert outcome.finished and outcome.step == 8


def test_the_same_layout_goes_on_bitwise(tmp_path):
    names = {"tensor x data": TENSOR_DATA, "tensor x sharded": TENSOR_SHARDED, "tensor x stages": TENSOR_STAGES}
    succeed(same_layout, 4, tmp_path, names, seconds=200)
    for name in names:
        whole, parts = tmp_path / name / "whole", tmp_path / name / "parts"
        assert metrics(whole) == metrics(parts)
        one, two = find(whole), find(parts)
        assert one.name == two.name == "step-00000008"
        first, second = (dict(Pieces(path).whole("")) for path in (one, two))
        assert {key for key in first if key.startswith("random/")} == {f"random/0000{rank}/cpu" for rank in range(4)}
        assert first.keys() == second.keys()
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key]), (name, key)


def chain(folder, layouts):
    with world(60) as found:
        for number, layout in enumerate(layouts, start=1):
            together(found, layout, folder, exit_interval=4 * number, **REPORTS).fit()


def assert_same_curve(first, second):
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        assert set(one) == set(two)
        for key, value in one.items():
            # What is zero and what is rounding depends on the order of sums: the count is near, not the same.
            tolerance = 0.05 if key == "zeros_in_grad" else 1e-5
            expected = value if isinstance(value, str) else pytest.approx(value, rel=tolerance)
            assert two[key] == expected, (one["step"], key)


def test_another_layout_goes_on_with_the_same_curve(tmp_path):
    alone(tmp_path / "whole", **REPORTS).fit()
    succeed(chain, 4, tmp_path / "parts", [TENSOR_STAGES, FULL], seconds=120)
    written = find(tmp_path / "parts")
    held, outside = resume.read(written), native.tensors_of(written)
    for kind, tensors in (("model", held.weights), ("optimizer", held.optimizer)):
        assert outside[kind].keys() == tensors.keys()
        assert all(torch.equal(outside[kind][name].load(), tensor) for name, tensor in tensors.items())
    said = []
    assert alone(tmp_path / "parts", said=said, **REPORTS).fit().finished
    assert any("going on from" in line and "step 8/12" in line for line in said)
    assert_same_curve(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"))
    one, two = resume.read(find(tmp_path / "whole")), resume.read(find(tmp_path / "parts"))
    for name, tensor in one.weights.items():
        # A key's bias has no true gradient; Adam makes steps of the rounding errors that are there.
        if not name.endswith("key.bias"):
            assert torch.allclose(tensor, two.weights[name], rtol=1e-4, atol=1e-5), name


def from_one_process(folder):
    with world(60) as found:
        together(found, TENSOR_SHARDED, folder).fit()


def test_a_checkpoint_of_one_process_is_gone_on_from_by_many(tmp_path):
    alone(tmp_path / "whole").fit()
    alone(tmp_path / "parts", exit_interval=5).fit()
    succeed(from_one_process, 4, tmp_path / "parts")
    assert_same_curve(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"))


def another_model(folder):
    with world(60) as found:
        together(found, Layout(world=2, tensor=2), folder, weight_decay=0.0, lr=1e-3).fit()


def test_damage_is_found_and_named(tmp_path):
    succeed(chain, 2, tmp_path / "run", [Layout(world=2, tensor=2)])
    path = find(tmp_path / "run")
    stored.verify(path)
    shard = path / "shard-00001.safetensors"
    content = bytearray(shard.read_bytes())
    content[-3] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard-00001.safetensors is damaged: its SHA-256"):
        resume.read(path)
    ended = run(another_model, 2, tmp_path / "run")
    assert all(one.status == 2 for one in ended)
    lines = [line for one in ended for line in one.errors.splitlines() if line.startswith("test: error")]
    assert len(lines) == 1 and "shard-00001.safetensors is damaged" in lines[0]
