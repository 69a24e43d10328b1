import random
import sys
import types

import pytest

from megabert import cli, executors
from megabert.executors import ExecutorOptions, chosen


class TaskError(Exception):
    def __init__(self, cause):
        super().__init__("a page of another machine's traceback")
        self.cause = cause


class MadeRay(types.ModuleType):
    """Ray's few functions that are used; tasks end in any order, and no more than are looked at."""

    def __init__(self):
        super().__init__("ray")
        self.exceptions = types.SimpleNamespace(RayTaskError=TaskError, RayError=OSError)
        self.random, self.unfinished, self.finished, self.most = random.Random(5), {}, {}, 0
        self.put = lambda value: ("put", value)
        self.nodes = lambda: [{"Alive": True}]
        self.cluster_resources = lambda: {"CPU": 3.0}
        self.is_initialized = lambda: True

    def remote(self, **options):
        assert options["max_retries"] > 0

        def submit(*arguments):
            task = object()
            self.unfinished[task] = arguments
            self.most = max(self.most, len(self.unfinished))
            return task

        return lambda function: types.SimpleNamespace(remote=lambda *arguments: submit(function, *arguments))

    def wait(self, tasks, num_returns, timeout):
        task = self.random.choice(tasks)
        self.finished[task] = self.unfinished.pop(task)
        return [task], [other for other in tasks if other is not task]

    def get(self, task):
        if isinstance(task, tuple):
            return task[1]
        function, *arguments = self.finished[task]
        try:
            return function(*arguments)
        except Exception as error:
            raise TaskError(error) from error


@pytest.fixture
def ray(monkeypatch):
    made = MadeRay()
    monkeypatch.setitem(sys.modules, "ray", made)
    monkeypatch.setattr(executors, "_functions", {})
    return made


def adder(number):
    def add(item):
        if item == 13:
            raise ValueError("no luck")
        if item == 14:
            raise FileNotFoundError(2, "No such file", "dump.xml")
        return item + number

    return add


def test_results_come_in_order_and_few_are_under_way(ray):
    asked = []

    def items():
        for item in range(100, 200):
            asked.append(item)
            yield item

    with chosen(ExecutorOptions(executor="ray"), None) as (map_in_order, workers):
        assert workers == 3
        seen = []
        for item, result in map_in_order(adder, (7,), items(), workers):
            seen.append(item)
            assert result == item + 7
            assert len(asked) - len(seen) <= 4 * workers
    assert seen == list(range(100, 200))
    assert ray.most == 3


@pytest.mark.parametrize(("item", "message"), [(13, "no luck"), (14, r"sees no file dump\.xml")])
def test_a_mistake_in_a_worker_is_the_command_s(ray, item, message):
    with (
        chosen(ExecutorOptions(executor="ray"), 2) as (map_in_order, workers),
        pytest.raises((ValueError, OSError), match=message),
    ):
        list(map_in_order(adder, (7,), [1, item], workers))


def test_nodes_with_another_release_are_refused(ray, monkeypatch):
    monkeypatch.setattr(executors, "_release", iter(["1", "2", "2"]).__next__)
    with (
        chosen(ExecutorOptions(executor="ray"), 2) as (map_in_order, _),
        pytest.raises(ValueError, match="has megabert 2, the command is of 1"),
    ):
        list(map_in_order(adder, (7,), [1], 2))


def test_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    dump = tmp_path / "d.xml"
    dump.write_text("<mediawiki><page></page></mediawiki>")
    given = ["extract", str(dump), "--output", str(tmp_path / "out")]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert cli.main([*given, "--executor", "ray"]) == 2
    assert "--executor ray needs Ray: pip install 'megabert[ray]'" in capsys.readouterr().err
    assert cli.main([*given, "--ray-address", "a:1"]) == 2
    assert "add --executor ray" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("address", "message"), [("127.0.0.1:1", "refused"), ("somewhere", "HOST:PORT is needed")])
def test_a_cluster_that_is_not_there_is_one_line(ray, address, message):
    ray.is_initialized = lambda: False
    with (
        pytest.raises(ValueError, match=rf"no Ray cluster at {address} that can be joined: .*{message}"),
        chosen(ExecutorOptions(executor="ray", ray_address=address), 2),
    ):
        pass


def test_a_cluster_without_processors_is_said(ray):
    ray.cluster_resources = dict
    with pytest.raises(ValueError, match="no processors"), chosen(ExecutorOptions(executor="ray"), 2):
        pass
