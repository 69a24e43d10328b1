import argparse
import collections
import enum
import io
import os
import pickle
import pickletools
import struct
import zipfile

import numpy as np
import pytest
import torch

from megabert.formats import regions, torch_writer, unpickle
from megabert.formats.checkpoint import LazyTensor


class Kind(enum.Enum):
    encoder = 1


class Scaler:
    """Stands for a pickled loss scaler of an old run."""

    def __init__(self):
        self.cur_scale = 65536.0


class Call:
    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


@pytest.mark.parametrize("zipped", [True, False])
def test_everything_a_checkpoint_holds(tmp_path, zipped):
    shared = torch.randn(6, 4)
    content = {
        "model": collections.OrderedDict(
            half=torch.randn(300, 200).half(), turned=torch.randn(4, 5).t(), part=shared[2:4], whole=shared,
            parameter=torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16)), empty=torch.zeros(0, 3),
            number=torch.tensor(2.5), bytes=torch.arange(5, dtype=torch.uint8),
        ),
        "args": argparse.Namespace(hidden_size=8, kind=Kind.encoder, dtype=torch.float16, betas=(0.9, 0.999)),
        "loss_scaler": Scaler(), "rng": np.random.RandomState(3).get_state(), "loss": np.float64(2.5),
        "big": 1 << 80, "text": "ä", "raw": b"\0\1", "names": {"a", "b"}, "none": None, "list": [1, [2, (3,)]],
    }  # fmt: skip
    torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
    data, foreign = unpickle.load(tmp_path / "x.pt")
    for name, tensor in content["model"].items():
        lazy = data["model"][name]
        assert lazy.shape == tuple(tensor.shape) and torch.equal(lazy.load(), tensor), name
    assert unpickle.plain(data["args"]) == {
        "hidden_size": 8, "kind": f"{Kind.__module__}.Kind(1)", "dtype": "torch.float16", "betas": [0.9, 0.999],
    }  # fmt: skip
    assert data["loss_scaler"].state == {"cur_scale": 65536.0}
    for name in ("loss", "big", "text", "raw", "names", "none", "list"):
        assert data[name] == content[name]
    assert f"{Kind.__module__}.Kind" in foreign and f"{Scaler.__module__}.Scaler" in foreign


def test_a_loaded_tensor_does_not_write_to_the_file(tmp_path):
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "x.pt")
    before = (tmp_path / "x.pt").read_bytes()
    tensor = unpickle.load(tmp_path / "x.pt").data["w"].load()
    tensor.fill_(1.0)
    assert (tmp_path / "x.pt").read_bytes() == before


def ran(tmp_path):
    return (tmp_path / "ran").exists()


def hostile(tmp_path):
    """Pickles that would run a command, each with what names it."""
    command = f"touch {tmp_path / 'ran'}"
    text = f"import os; os.system({command!r})"
    yield Call(os.system, command), "posix.system"
    yield Call(eval, f"__import__('os').system({command!r})"), "eval"
    yield Call(exec, text), "exec"
    yield Call(getattr, "a", "upper"), "getattr"
    yield Call(os.popen, command), "popen"
    yield {"args": argparse.Namespace(inner=[Call(os.system, command)])}, "posix.system"
    yield Call(__import__, "os"), "__import__"
    yield Call(pickle.loads, pickle.dumps(Call(os.system, command))), "loads"
    yield Call(bytearray, 10**13), "length"


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path, zipped):
    for value, name in hostile(tmp_path):
        torch.save({"model": value}, tmp_path / "x.pt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(ValueError, match=name) as failure:
            unpickle.load(tmp_path / "x.pt")
        assert str(tmp_path / "x.pt") in str(failure.value) and "\n" not in str(failure.value)
    assert not ran(tmp_path)


OPCODES = [
    # through INST, OBJ, NEWOBJ, NEWOBJ_EX and STACK_GLOBAL
    b"(S'echo'\nios\nsystem\n.", b"(cos\nsystem\nS'echo'\no.", b"cos\nsystem\n(S'echo'\nt\x81.",
    b"\x80\x04cos\nsystem\n(S'echo'\nt}\x92.", b"\x80\x04\x8c\x02os\x8c\x06system\x93(S'echo'\ntR.",
    b"\x80\x04\x8c\x08builtins\x8c\x07getattr\x93.", b"\x80\x04\x8c\x0bcollections\x8c\x13abc.sys.modules.clear\x93.",
    # a change of what a global is, an attribute through BUILD, a call of what was made
    b"ccollections\nOrderedDict\n}S'__call__'\nI1\nsb.", b"cmegatron.x\nY\n(I1\ntR(I1\ntR.",
    b"cargparse\nNamespace\n(I1\ntR)R.",
    # the memo: a place that was never filled, a huge index, a mark that is remembered
    b"g5\n.", b"I1\nr\xff\xff\xff\xffh\x00.", b"(q\x00.", b"(p0\n.",
    # lengths that the file does not hold
    b"\x80\x04\x8e\xff\xff\xff\xff\xff\xff\xff\x7f.", b"T\xff\xff\xff\x7f.", b"X\xff\xff\xff\xff.",
    b"\x8b\xff\xff\xff\x7f.",
    b"\x80\x05\x96\xff\xff\xff\xff\xff\xff\xff\x7f.",
    # extension registry, buffers, references outside, nothing at all
    b"\x82\x01.", b"\x80\x05\x97.", b"Pstorage\n.", b".", b"0.", b"1.", b"(.", b"a.", b"I1\n", b"", b"\xff", b"}I1\ns.",
    b"}(((I1\nttI1\ns.", b"](I1\nu.",
]  # fmt: skip


@pytest.mark.parametrize("data", OPCODES)
def test_hostile_and_damaged_opcodes(data):
    with pytest.raises(ValueError, match=r"x\.pkl") as failure:
        unpickle.loads(data, "x.pkl")
    assert "\n" not in str(failure.value)


def test_deep_nesting_neither_overflows_nor_hangs():
    for data in (b"]" * 100_000 + b"a" * 99_999 + b".", b")" + b"\x85" * 100_000 + b"."):
        value = unpickle.loads(data, "x.pkl").data
        unpickle.plain(value)
    with pytest.raises(ValueError, match="no key"):
        unpickle.loads(b"})" + b"\x85" * 300_000 + b"I1\ns.", "x.pkl")


def test_objects_stay_inert():
    data, foreign = unpickle.loads(b"cmegatron.fp16\nLossScaler\n)R}S'scale'\nI4\nsb.", "x.pkl")
    assert data.name == "megatron.fp16.LossScaler" and data.state == {"scale": 4}
    assert foreign == ("megatron.fp16.LossScaler",)


def rewritten(source, target, change):
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for entry in old.infolist():
            data = change(entry.filename, old.read(entry))
            if data is not None:
                new.writestr(entry.filename, data)


def test_damaged_containers_name_file_and_tensor(tmp_path):
    torch.save({"w": torch.randn(1000)}, tmp_path / "x.pt")
    bad = tmp_path / "bad.pt"
    rewritten(tmp_path / "x.pt", bad, lambda name, data: data[:100] if name.endswith("data/0") else data)
    with pytest.raises(ValueError, match=r"bad\.pt is damaged: data/0 has 100 bytes, but its tensor needs 4,000"):
        unpickle.load(bad)
    rewritten(tmp_path / "x.pt", bad, lambda name, data: None if name.endswith("data/0") else data)
    with pytest.raises(ValueError, match=r"bad\.pt is damaged: its tensor data/0 is missing"):
        unpickle.load(bad)
    whole = (tmp_path / "x.pt").read_bytes()
    bad.write_bytes(whole[:-500])
    with pytest.raises(ValueError, match=r"bad\.pt is damaged"):
        unpickle.load(bad)
    torch.save({"w": torch.randn(1000)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    bad.write_bytes((tmp_path / "old.pt").read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"bad\.pt is damaged: it ends before"):
        unpickle.load(bad)
    bad.write_bytes(b"hello")
    with pytest.raises(ValueError, match=r"no file of torch\.save"):
        unpickle.load(bad)


@pytest.mark.parametrize(("shape", "strides", "offset"), [((10**9,), (0,), 0), ((4,), (1,), 10**6), ((-1,), (1,), 0),
                                                           ((10,), (200,), 0), ((1 << 40, 0), (1, 1), -1)])  # fmt: skip
def test_shapes_larger_than_their_storage_are_refused(tmp_path, shape, strides, offset):
    torch.save({"w": torch.randn(1000)}, tmp_path / "x.pt")
    made = pickle.dumps(0)
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        made = archive.read(name)

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, obj):
            return ("storage", torch.FloatStorage, "0", "cpu", 1000) if isinstance(obj, Storage) else None

    buffer = io.BytesIO()
    rebuild = torch._utils._rebuild_tensor_v2
    Pickler(buffer, 2).dump({"w": Call(rebuild, Storage(), offset, shape, strides, False, collections.OrderedDict())})
    assert made
    bad = tmp_path / "bad.pt"
    rewritten(tmp_path / "x.pt", bad, lambda entry, data: buffer.getvalue() if entry.endswith("data.pkl") else data)
    with pytest.raises(ValueError, match=r"bad\.pt"):
        unpickle.load(bad)


def test_a_bomb_is_refused(tmp_path):
    torch.save({"w": torch.zeros(2_000_000)}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "b.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    with pytest.raises(ValueError, match="no checkpoint compresses so well"):
        unpickle.load(tmp_path / "b.pt")


def test_a_compressed_container_is_read(tmp_path):
    weights = torch.randn(5000)
    torch.save({"w": weights}, tmp_path / "x.pt")
    with (
        zipfile.ZipFile(tmp_path / "x.pt") as old,
        zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as new,
    ):
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry))
    assert torch.equal(unpickle.load(tmp_path / "c.pt").data["w"].load(), weights)


def test_damage_at_every_place_is_one_clear_error(tmp_path):
    torch.save({"m": {"w": torch.randn(3, 4)}, "a": argparse.Namespace(x=1)}, tmp_path / "x.pt")
    with zipfile.ZipFile(tmp_path / "x.pt") as archive:
        data = archive.read("x/data.pkl")
    assert list(pickletools.genops(data))
    for place in range(len(data)):
        for changed in (data[:place], data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]):
            rewritten(tmp_path / "x.pt", tmp_path / "bad.pt",
                      lambda name, old, new=changed: new if name == "x/data.pkl" else old)  # fmt: skip
            try:
                unpickle.plain(unpickle.load(tmp_path / "bad.pt").data)
            except ValueError as error:
                assert "bad.pt" in str(error)


def test_written_files_are_read_by_torch(tmp_path):
    big = torch.randn(70_000, dtype=torch.float64)
    lazy = LazyTensor.of(torch.randn(7, 3).bfloat16().t(), "a")
    data = {"a": lazy, "again": lazy, "n": {"b": LazyTensor.of(big[10:-10], "b")}, "i": 3,
            "e": LazyTensor.of(torch.zeros(0, 2), "e")}  # fmt: skip
    torch_writer.save(data, tmp_path / "x.pt")
    found = torch.load(tmp_path / "x.pt", weights_only=True)
    assert torch.equal(found["a"], lazy.load()) and found["again"].data_ptr() == found["a"].data_ptr()
    assert torch.equal(found["n"]["b"], big[10:-10]) and found["i"] == 3 and found["e"].shape == (0, 2)
    assert torch.equal(unpickle.load(tmp_path / "x.pt").data["n"]["b"].load(), big[10:-10])


def test_regions_end_where_they_should(tmp_path):
    (tmp_path / "f").write_bytes(struct.pack("<10f", *range(10)))
    region = regions.Region.whole(tmp_path / "f").part(8, 16, "inner")
    assert region.tensor(torch.float32, (2, 2)).tolist() == [[2.0, 3.0], [4.0, 5.0]]
    assert region.open().read() == struct.pack("<4f", 2, 3, 4, 5) and region.name.endswith("f!inner")
    for wrong in (lambda: region.part(8, 9), lambda: region.tensor(torch.float32, (5,))):
        with pytest.raises(ValueError, match="cut short"):
            wrong()
