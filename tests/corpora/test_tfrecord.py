import io

import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

from megabert.corpora import tfrecord

VALUES = {
    "input_ids": np.array([101, 7000, 30521, 5, 1 << 40]),
    "masked_lm_weights": np.array([1, 0.5], np.float32),
    "nothing": np.zeros(0, np.int64),
}


@pytest.fixture(scope="module")
def example_class():
    """tf.train.Example, from its published description, by protobuf's own library."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="x", syntax="proto3")
    for name, kind in (("BytesList", 12), ("FloatList", 2), ("Int64List", 3)):
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=3)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), 1):
        kind = ".x." + name.title().replace("_", "")
        feature.field.add(name=name, number=number, type=11, label=1, type_name=kind, oneof_index=0)
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=9, label=1)
    entry.field.add(name="value", number=2, type=11, label=1, type_name=".x.Feature")
    features.field.add(name="feature", number=1, type=11, label=3, type_name=".x.Features.FeatureEntry")
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=11, label=1, type_name=".x.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("x.Example"))


def test_frames_are_those_of_the_format():
    assert tfrecord.checksum(b"123456789") == 0xC78AB0E5
    assert tfrecord.frame(b"abc").hex() == "0300000000000000b099490e6162636e57f121"
    assert tfrecord.begins_frame(tfrecord.frame(b"")) and not tfrecord.begins_frame(b'{"text": "The sea."}')


def read(content, **place):
    return list(tfrecord.frames(io.BytesIO(content), "x.tfrecord", **place))


def test_records_are_found_and_damage_is_told():
    content = b"".join(map(tfrecord.frame, (b"abc", b"", b"defg")))
    records = read(content)
    assert [(record.number, record.payload, record.sound) for record in records] == [
        (1, b"abc", True), (2, b"", True), (3, b"defg", True),
    ]  # fmt: skip
    second = records[0].end
    assert read(content[second:], number=1, offset=second) == records[1:]
    flipped = content.replace(b"abc", b"abd")
    assert [record.sound for record in read(flipped)] == [False, True, True]
    with pytest.raises(ValueError, match=r"record 2 \(byte 19\) has a length whose checksum is wrong"):
        read(content[:second] + b"\x01" + content[second + 1 :])
    for cut in (len(content) - 1, second + 5):
        with pytest.raises(ValueError, match="is cut short"):
            read(content[:cut])
    with pytest.raises(ValueError, match="checksum is wrong"):  # no memory is asked for, whatever the length says
        read(b"\xff" * 12)


def test_examples_are_those_of_protobuf(example_class):
    theirs = example_class()
    theirs.ParseFromString(tfrecord.make_example(VALUES))
    assert list(theirs.features.feature["input_ids"].int64_list.value) == VALUES["input_ids"].tolist()
    assert list(theirs.features.feature["masked_lm_weights"].float_list.value) == [1, 0.5]
    theirs.features.feature["below"].int64_list.value.extend([-1, 1 << 62, 3])
    theirs.features.feature["name"].bytes_list.value.append(b"left out")
    ours = tfrecord.parse_example(theirs.SerializeToString())
    assert ours.pop("below").tolist() == [-1, 1 << 62, 3]
    assert {key: (value.dtype.kind, value.tolist()) for key, value in ours.items()} == {
        key: (value.dtype.kind, value.tolist()) for key, value in VALUES.items()
    }


def test_lists_that_are_not_packed_are_read():
    numbers = b"\x1a\x07" + b"\x08\x05\x08\x80\x01\x08\x01"  # three values, each with its own tag
    floats = b"\x12\x05" + b"\x0d" + np.float32(0.5).tobytes()
    entries = b"".join(
        b"\x0a" + bytes([len(entry)]) + entry
        for entry in (b"\x0a\x01n\x12" + bytes([len(numbers)]) + numbers, b"\x0a\x01f\x12\x07" + floats)
    )
    found = tfrecord.parse_example(b"\x0a" + bytes([len(entries)]) + entries)
    assert found["n"].tolist() == [5, 128, 1] and found["f"].tolist() == [0.5]


def test_no_content_breaks_the_reader():
    whole = tfrecord.make_example(VALUES)
    generator = np.random.default_rng(0)
    for _ in range(500):
        content = bytearray(whole[: generator.integers(1, len(whole) + 1)])
        content[generator.integers(len(content))] = generator.integers(256)
        try:
            found = tfrecord.parse_example(bytes(content))
        except ValueError:
            continue
        assert all(len(value) <= len(whole) for value in found.values())
