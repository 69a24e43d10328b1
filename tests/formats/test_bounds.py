"""Small files that stand for endless work: each is refused in less than the seconds of these tests."""

import argparse
import io
import struct
import zipfile

import made
import pytest
import torch
from test_nemo import archive_of, legacy_state

import megabert
from megabert.formats import megatron_core_chunks, megatron_core_names, nemo, unpickle
from megabert.formats.regions import Region


def laughs(depth=45):
    value = "v"
    for _ in range(depth):
        value = [value, value]
    return value


def saved(path, **content):
    torch.save({"model": {"x": torch.zeros(1)}, **content}, path)
    return path


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"args": argparse.Namespace(foo=laughs())}, "args stands for more than 200,000 values"),
        ({"iteration": laughs()}, "iteration is a list; a whole number"),
        ({"checkpoint_version": laughs()}, "checkpoint_version is a list; a number"),
    ],
)
def test_shared_parts_are_counted_each_time(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        megabert.open_checkpoint(saved(tmp_path / "x.pt", **content))


def test_a_model_of_shared_dicts(tmp_path):
    model = {"w": torch.zeros(1)}
    for _ in range(29):
        model = {"a": model, "b": model}
    torch.save({"model": model}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt stands for more than 200,000 values"):
        megabert.open_checkpoint(tmp_path / "x.pt")
    inner = {f"{number}": torch.zeros(1) for number in range(3)}
    torch.save({"model": {"long" * 1000: inner}}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="a name of 4,000 letters"):
        megabert.open_checkpoint(tmp_path / "x.pt")


def test_a_version_nested_without_end_is_one_line(tmp_path):
    key = b"X" + struct.pack("<I", 18) + b"checkpoint_version"
    pickle = b"\x80\x02}" + key + b"]" * 20_000 + b"a" * 19_999 + b"s."
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle)
    with pytest.raises(ValueError, match="checkpoint_version is a list"):
        megabert.open_checkpoint(tmp_path / "x.pt")


def run(pickle):
    return unpickle.loads(b"\x80\x02" + pickle + b".", "x")


def test_instructions_and_copies_are_counted(monkeypatch):
    monkeypatch.setattr("megabert.formats.unpickle_machine.MOST_STEPS", 1000)
    with pytest.raises(ValueError, match="x stands for more than 1,000 steps"):
        run(b"}" * 1001)
    # One text of 10,000 letters, turned into bytes again and again.
    text = b"X" + struct.pack("<I", 10_000) + b"a" * 10_000 + b"q\x000"
    again = b"c_codecs\nencode\nh\x00\x85R"
    assert run(text + again).data == b"a" * 10_000
    with pytest.raises(ValueError, match="steps"):
        run(text + again * 20)


def test_keys_that_all_have_one_hash_are_refused():
    number = (1 << 61) - 1
    entry = b"\x8a\x08" + struct.pack("<q", number) + b"N"
    with pytest.raises(ValueError, match="a int is no key"):
        run(b"}(" + entry + b"u")
    with pytest.raises(ValueError, match="an impossible place in the memo"):
        run(b"Np" + str(number).encode() + b"\n")


def test_yaml_that_stands_for_more_than_it_says(tmp_path):
    merges = "a0: &a0 {k0: 1, k1: 1, k2: 1}\n"
    for level in range(1, 10):
        merges += f"a{level}: &a{level} {{<<: [{', '.join([f'*a{level - 1}'] * 9)}]}}\n"
    digits = "a: " + "1" + ":10" * 50_000
    laughing = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60))
    members = {"model_weights.ckpt": legacy_state(made.weights(parts=("tokentypes",)), 4, "v2", "model.")}
    for text, message in ((merges, "stands for more than 100,000 values"), (digits, "a number of 150,001 digits")):
        with pytest.raises(ValueError, match=message) as raised:
            nemo.read(archive_of(tmp_path / "x.nemo", {"model_config.yaml": text.encode(), **members}))
        assert "x.nemo!model_config.yaml" in str(raised.value) and "\n" not in str(raised.value)
    # A class path that is no text is none.
    text = laughing + "target: *a59\nnemo_version: 1.8.0\n"
    read = nemo.read(archive_of(tmp_path / "x.nemo", {"model_config.yaml": text.encode(), **members}), heads=4)
    assert "nemo_target" not in read.training


def test_a_stack_of_empty_layers_is_none(tmp_path):
    chunk = megatron_core_chunks.Chunk((0, 0), (1 << 40, 0), Region(tmp_path, 0, 0))
    stored = megatron_core_chunks.Stored("x", (1 << 40, 0), torch.float32, (chunk,), tmp_path)
    with pytest.raises(ValueError, match="is no stack of layers"):
        megatron_core_names.unstacked({"encoder.layers.mlp.linear_fc1.weight": stored})


def test_a_changed_byte_of_a_weight_is_noticed(tmp_path):
    weights = made.weights(layers=1)
    megabert.save_checkpoint(made.checkpoint(weights), tmp_path / "x", format="megatron")
    file = tmp_path / "x" / "release" / "mp_rank_00" / "model_optim_rng.pt"
    whole = bytearray(file.read_bytes())
    whole[len(whole) // 2] ^= 0x40
    file.write_bytes(whole)
    checkpoint = megabert.open_checkpoint(tmp_path / "x")
    with pytest.raises(ValueError, match=r"model_optim_rng\.pt!archive/data/\d+ is damaged: its bytes do not have"):
        megabert.save_checkpoint(checkpoint, tmp_path / "y")
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_torch_may_be_told_to_leave_checksums_out(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, tmp_path / "x.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(unpickle.load(tmp_path / "x.pt").data["a"].load(), torch.ones(3))
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(3)}, buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    assert torch.equal(unpickle.load(tmp_path / "x.pt").data["a"].load(), torch.ones(3))
