import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from megabert.data import map_cache


def test_a_map_is_cut_once_for_each_of_its_causes(tmp_path, monkeypatch):
    cuts = []

    def cut(value):
        cuts.append(value)
        return np.full((4, 3), value, np.uint32)

    assert map_cache.cached(None, {"seed": 1}, 1 << 20, lambda: cut(1))[0, 0] == 1
    assert map_cache.cached(tmp_path, {"seed": 1}, 100, lambda: cut(1))[0, 0] == 1
    assert not list(tmp_path.iterdir()) and len(cuts) == 2
    for seed in (1, 2, 1, 2):
        assert map_cache.cached(tmp_path, {"seed": seed}, 1 << 20, lambda seed=seed: cut(seed))[0, 0] == seed
    assert cuts == [1, 1, 1, 2]
    for path in tmp_path.glob("*.npy"):
        path.write_bytes(path.read_bytes()[:-5])
    assert map_cache.cached(tmp_path, {"seed": 2}, 1 << 20, lambda: cut(2)).tolist() == [[2] * 3] * 4
    assert cuts[-1] == 2 and len(cuts) == 5


def test_many_processes_at_once_cut_it_once(tmp_path):
    code = (
        "import sys, time, numpy, pathlib; from megabert.data import map_cache; f = pathlib.Path(sys.argv[1])\n"
        "def cut():\n"
        "    open(f / 'cuts', 'a').write('x'); time.sleep(0.3); return numpy.ones((9, 3), numpy.uint32)\n"
        "assert map_cache.cached(f, {'seed': 3}, 1 << 20, cut).sum() == 27"
    )
    with ThreadPoolExecutor(4) as pool:
        runs = list(pool.map(lambda _: subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True), "1234"))
    assert len(runs) == 4 and (tmp_path / "cuts").read_text() == "x"
