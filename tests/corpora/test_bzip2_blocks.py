import bz2
import random

import pytest

from megabert.corpora import bzip2_blocks


def joined(path, part_bytes):
    size = path.stat().st_size
    return b"".join(
        bzip2_blocks.unpack_part(path, start, min(start + part_bytes, size)) for start in range(0, size, part_bytes)
    )


@pytest.fixture(scope="module")
def content():
    noise = random.Random(0)
    words = [noise.randbytes(6) for _ in range(500)]
    return b"".join(noise.choice(words) for _ in range(150_000))


@pytest.mark.parametrize("part_bytes", [997, 60_000, 10_000_000])
@pytest.mark.parametrize("level", [1, 9])
def test_parts_join_to_the_whole(tmp_path, content, level, part_bytes):
    path = tmp_path / "one.bz2"
    path.write_bytes(bz2.compress(content, level))
    assert joined(path, part_bytes) == content


def test_many_streams_runs_and_empty_ones(tmp_path, content):
    path = tmp_path / "many.bz2"
    streams = [content[:70_000], b"", b"a" * 3_000_000, b"x", content[70_000:300_000]]
    path.write_bytes(b"".join(bz2.compress(stream, 1 + index) for index, stream in enumerate(streams)))
    assert joined(path, 5_000) == b"".join(streams)


def test_a_mark_that_is_content_by_chance(tmp_path):
    path = tmp_path / "chance.bz2"
    inner = bz2.compress(random.Random(1).randbytes(200_000), 9)  # packed again, it is stored nearly as it is
    path.write_bytes(bz2.compress(inner + inner))
    assert joined(path, 100_000) == inner + inner


def test_damage_is_named(tmp_path, content):
    path = tmp_path / "short.bz2"
    packed = bz2.compress(content, 1)
    path.write_bytes(packed[: len(packed) // 2])
    with pytest.raises(ValueError, match=r"short\.bz2 is damaged or cut short: the bzip2 block at byte [\d,]+"):
        joined(path, 50_000)
    changed = bytearray(packed)
    changed[len(packed) // 3] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="damaged"):
        joined(path, 50_000)
