import gzip
import io
import os
import tarfile

import pytest

from megabert.formats import archive


def make_tar(path, entries, *, compressed=False, format=tarfile.GNU_FORMAT):
    """entries: (name, content) or a TarInfo without content."""
    with tarfile.open(path, "w:gz" if compressed else "w", format=format) as tar:
        for entry in entries:
            if isinstance(entry, tarfile.TarInfo):
                tar.addfile(entry)
            else:
                info = tarfile.TarInfo(entry[0])
                info.size = len(entry[1])
                tar.addfile(info, io.BytesIO(entry[1]))
    return path


def special(name, kind, link=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


FILES = [("./model_config.yaml", b"a: 1\n"), ("mp_rank_00/w.ckpt", b"weights" * 1000), ("empty", b"")]


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_members_in_place(tmp_path, compressed):
    path = make_tar(tmp_path / "x.nemo", FILES, compressed=compressed)
    assert archive.is_archive(path)
    before = set(tmp_path.rglob("*"))
    found = archive.members(path)
    assert {name: region.read() for name, region in found.items()} == {
        "model_config.yaml": b"a: 1\n", "mp_rank_00/w.ckpt": b"weights" * 1000, "empty": b"",
    }  # fmt: skip
    assert found["mp_rank_00/w.ckpt"].name == f"{path}!mp_rank_00/w.ckpt"
    assert set(tmp_path.rglob("*")) == before


def test_reads_a_folder_as_an_archive(tmp_path):
    (tmp_path / "mp_rank_00").mkdir()
    (tmp_path / "mp_rank_00" / "w").write_bytes(b"1")
    (tmp_path / "c.yaml").write_bytes(b"2")
    assert {name: region.read() for name, region in archive.members(tmp_path).items()} == {
        "mp_rank_00/w": b"1", "c.yaml": b"2",
    }  # fmt: skip


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (("../evil", b"x"), "leads outside"),
        (("a/../../evil", b"x"), "leads outside"),
        (("/etc/evil", b"x"), "leads outside"),
        (("C:/evil", b"x"), "leads outside"),
        (("a\\..\\evil", b"x"), "leads outside"),
        (special("l", tarfile.SYMTYPE, "/etc/passwd"), "link"),
        (special("l", tarfile.LNKTYPE, "model_config.yaml"), "link"),
        (special("d", tarfile.CHRTYPE), "device"),
        (special("d", tarfile.BLKTYPE), "device"),
        (special("d", tarfile.FIFOTYPE), "device"),
        (special("../out", tarfile.DIRTYPE), "leads outside"),
        (special(".", tarfile.REGTYPE), "without a name"),
        (("model_config.yaml", b"again"), "twice"),
    ],
)
def test_what_could_do_harm_is_refused(tmp_path, entry, message, compressed):
    path = make_tar(tmp_path / "x.nemo", [*FILES, entry], compressed=compressed)
    with pytest.raises(ValueError, match=message) as raised:
        archive.members(path)
    assert str(path) in str(raised.value) and "\n" not in str(raised.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.nemo"]


def test_sparse_files_are_refused(tmp_path):
    path = tmp_path / "x.nemo"
    info = tarfile.TarInfo("s")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    path.write_bytes(bytes(header) + bytes(10240))
    with pytest.raises(ValueError, match=r"refused|damaged"):
        archive.members(path)


def test_bombs_are_refused(tmp_path):
    path = tmp_path / "bomb.nemo"
    with gzip.open(path, "wb", compresslevel=9) as file:
        info = tarfile.TarInfo("zeros")
        info.size = 200 << 20
        file.write(info.tobuf())
        for _ in range(100):
            file.write(bytes(1 << 20))
    with pytest.raises(ValueError, match="more than 50 times its size"):
        archive.members(path)


def test_huge_headers_are_refused(tmp_path):
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        info = tarfile.TarInfo("x")
        info.type, info.size = kind, 1 << 40
        path = tmp_path / "x.nemo"
        path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024))
        with pytest.raises(ValueError, match=r"no good archive|damaged"):
            archive.members(path)


@pytest.mark.parametrize("compressed", [False, True])
def test_damage_is_named(tmp_path, compressed):
    path = make_tar(tmp_path / "x.nemo", [("a", os.urandom(50_000)), ("b", os.urandom(50_000))], compressed=compressed)
    whole = path.read_bytes()
    for cut in (70_000, 300, 20):
        path.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"x\.nemo"):
            archive.members(path)


def test_an_empty_archive_and_other_files(tmp_path):
    make_tar(tmp_path / "empty.nemo", [])
    with pytest.raises(ValueError, match="without files"):
        archive.members(tmp_path / "empty.nemo")
    (tmp_path / "text").write_text("hello" * 1000)
    assert not archive.is_archive(tmp_path / "text")
    assert not archive.is_archive(tmp_path)
    with pytest.raises(ValueError, match="damaged"):
        archive.members(tmp_path / "text")


@pytest.mark.parametrize("compressed", [False, True])
def test_written_archives_are_read_by_tarfile(tmp_path, compressed):
    contents = []
    for name in ("one", "two"):
        with (tmp_path / name).open("wb") as file:
            writer = archive.Writer(file, compressed=compressed)
            writer.add("model_config.yaml", b"a: 1")
            with writer.member("mp_rank_00/w.ckpt") as member:
                begin = member.tell()
                member.write(b"....5678" * 1000)
                member.seek(begin)
                member.write(b"1234")
                member.seek(0, os.SEEK_END)
            writer.add("last", b"z" * 512)
            writer.finish()
        contents.append((tmp_path / name).read_bytes())
    assert contents[0] == contents[1]
    with tarfile.open(tmp_path / "one") as tar:
        assert tar.getnames() == ["model_config.yaml", "mp_rank_00", "mp_rank_00/w.ckpt", "last"]
        read = tar.extractfile("mp_rank_00/w.ckpt").read()
        assert (read[:8], len(read)) == (b"12345678", 8000)
        assert tar.extractfile("last").read() == b"z" * 512
    assert archive.members(tmp_path / "one")["mp_rank_00/w.ckpt"].read(0, 8) == b"12345678"
