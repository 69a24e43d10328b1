import contextlib
import threading

import pytest
import torch

from megabert.training.saving import Saver
from megabert.training.snapshot import Snapshot, derived_random


def made():
    weight = torch.nn.Parameter(torch.ones(4))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    weight.grad = torch.ones(4)
    return weight, optimizer


def moment(weight):
    return Snapshot({"weight": weight.detach()}, state={"step": 1})


def test_an_update_waits_for_the_copy_and_not_for_the_disk():
    weight, optimizer = made()
    saver = Saver(optimizer, background=True)
    written, disk = [], threading.Event()

    def write(copied):
        disk.wait()
        written.append(copied.weights["weight"].clone())

    saver.start(moment(weight), write)
    optimizer.step()
    assert weight.tolist() == [0.0] * 4 and saver.running and not written
    disk.set()
    saver.finish()
    assert written[0].tolist() == [1.0] * 4, "what the moment was, not what the update made of it"
    assert not saver.running


def test_an_update_before_the_copy_is_done_waits(monkeypatch):
    weight, optimizer = made()
    saver = Saver(optimizer, background=True)
    go_on = threading.Event()
    copy = saver._copy
    monkeypatch.setattr(saver, "_copy", lambda *given: (go_on.wait(), copy(*given))[1])
    found = []
    saver.start(moment(weight), lambda copied: found.append(copied.weights["weight"].clone()))
    threading.Timer(0.2, go_on.set).start()
    optimizer.step()
    saver.finish()
    assert found[0].tolist() == [1.0] * 4 and saver.waited >= 0.1


def test_a_thread_copies_on_the_gpu_of_its_process(monkeypatch):
    """With doubles of CUDA's: a new thread's own GPU is the first one."""
    done = []

    class Event:
        def record(self):
            done.append("recorded")

    class Stream:
        def __init__(self, device=0):
            self.device = device

        def wait_event(self, event):
            done.append(("waits", self.device, type(event)))

        def synchronize(self):
            done.append(("copied", self.device))

    @contextlib.contextmanager
    def stream(one):
        done.append(("copies", one.device))
        yield

    for name, double in {
        "is_available": lambda: True, "is_initialized": lambda: True, "current_device": lambda: 3,
        "Event": Event, "Stream": Stream, "stream": stream,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, double)
    weight, optimizer = made()
    saver = Saver(optimizer, background=True)
    saver.start(moment(weight), lambda _: done.append("written"))
    saver.finish()
    assert done == ["recorded", ("copies", 3), ("waits", 3, Event), ("copied", 3), "written"]


def test_a_failure_is_told_at_the_next_occasion_and_once():
    weight, optimizer = made()
    saver = Saver(optimizer, background=True)

    def fail(_):
        raise OSError("no space")

    saver.start(moment(weight), fail)
    with pytest.raises(OSError, match="no space"):
        saver.start(moment(weight), fail)
    assert not saver.failed
    saver.finish()


def test_in_the_foreground_nothing_is_copied():
    weight, optimizer = made()
    found = []
    Saver(optimizer, background=False).start(moment(weight), found.append)
    assert found[0].weights["weight"].data_ptr() == weight.data_ptr()


def test_streams_of_a_new_layout_follow_from_those_stored():
    states = {"00000/cpu": torch.get_rng_state(), "00001/cpu": torch.Generator().manual_seed(1).get_state()}
    first, again, other = (derived_random(states, stream)["cpu"] for stream in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert derived_random({}, 0) == {}
