import errno
import os
import signal
import subprocess
import sys

import pytest

from megabert.runtime import Terminated, atomic_write, duration, signals_wait, termination_interrupts


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    target = tmp_path / "latest"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic_write(target) as file:
        file.write("half")
        raise RuntimeError
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_a_write_that_fails_names_the_file_and_not_the_one_in_its_place(tmp_path):
    for number in (errno.ENOSPC, errno.EDQUOT):
        with pytest.raises(OSError) as told, atomic_write(tmp_path / "scores.json"):
            raise OSError(number, os.strerror(number))  # as the system says it, without a name
        assert told.value.filename == str(tmp_path / "scores.json")
    with pytest.raises(OSError) as told, atomic_write(tmp_path / "gone" / "scores.json"):
        pass
    assert told.value.filename == str(tmp_path / "gone" / "scores.json")
    with pytest.raises(OSError) as told, atomic_write(tmp_path / "scores.json"):
        (tmp_path / "other").read_text()
    assert told.value.filename == str(tmp_path / "other") and not list(tmp_path.iterdir())


def test_a_write_that_succeeds_replaces(tmp_path):
    target = tmp_path / "latest"
    target.write_text("old")
    with atomic_write(target, "wb") as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.2, "0s"), (59.6, "1m00s"), (192, "3m12s"), (18420, "5h07m"), (183600, "2d03h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text


def test_sigterm_interrupts_once_it_may(tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    reached = []
    with pytest.raises(Terminated), termination_interrupts():
        with signals_wait():
            os.kill(os.getpid(), signal.SIGTERM)
            reached.append("the end of the block")
        reached.append("what is behind it")
    assert reached == ["the end of the block"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is of glibc")
def test_freed_memory_is_used_again():
    """Of 64 MiB that are made, freed and made again, the second time no page is new."""
    program = (
        "import resource; from megabert import runtime; kept = runtime.keep_freed_memory(); made = bytearray(1 << 26); "
        "del made; before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt; made = bytearray(1 << 26); "
        "print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, faults = done.stdout.split()
    assert kept == "False" or int(faults) < 1000


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="mallopt is of glibc")
def test_freed_memory_stays_however_much_it_is():
    """3 GiB, never touched, are still of the process after they are freed."""
    program = (
        "import ctypes, os; from megabert import runtime; kept = runtime.keep_freed_memory(); "
        "c = ctypes.CDLL(None); c.malloc.restype = ctypes.c_void_p; "
        "block = c.malloc(ctypes.c_size_t(3 << 30)); pages = lambda: int(open('/proc/self/statm').read().split()[0]); "
        "before = pages(); c.free(ctypes.c_void_p(block)); print(kept and block is not None, before - pages())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    kept, lost = done.stdout.split()
    assert kept == "False" or int(lost) < 1000
