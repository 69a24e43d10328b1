import pytest

from megabert.runtime import atomic_write


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "latest"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as file:
        file.write("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_write_that_succeeds_replaces(tmp_path):
    target = tmp_path / "latest"
    target.write_text("old")
    with atomic_write(target, "wb") as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]
