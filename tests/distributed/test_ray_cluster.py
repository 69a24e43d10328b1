"""A Ray cluster of two nodes on this machine, one of which is killed in mid-run: `pytest -m cluster`."""

import bz2
import json
import random
from itertools import islice

import pytest

from megabert.corpora import wikipedia
from megabert.data import preprocess
from megabert.data.preprocess import tokenize
from megabert.executors import ExecutorOptions, chosen
from megabert.tokenization.word_piece import from_tokens

pytestmark = pytest.mark.cluster
WORDS = ["the", "sea", "was", "calm", "ship", "##s", "a", "man", "came", "near", "."]


@pytest.fixture
def cluster():
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'megabert[ray]'")
    import ray
    from ray.cluster_utils import Cluster

    quick = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "_system_config": quick, "include_dashboard": False}
    )
    try:
        made.second = made.add_node(num_cpus=1)
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()


def killing(cluster, map_in_order, after):
    """An executor whose second node is killed when `after` results came, with pieces under way on it."""
    killed = []

    def mapped(make, arguments, items, workers):
        for count, pair in enumerate(map_in_order(make, arguments, items, workers)):
            if count == after:
                cluster.remove_node(cluster.second, allow_graceful=False)
                killed.append(count)
            yield pair

    return mapped, killed


def same_files(one, two):
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir())
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name


def test_extraction_loses_a_node_and_no_byte(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr(wikipedia, "_PIECE_BYTES", 20_000)
    monkeypatch.setattr(wikipedia, "_LEAST_PIECE_BYTES", 20_000)
    draw = random.Random(3)
    links = (f"[[w{draw.randrange(1 << 40)}|{draw.randrange(1 << 40)}]]" for _ in range(90_000))
    pages = "".join(
        f"<page><title>T{number}</title><ns>0</ns><id>{number}</id><revision><id>{number}</id><text>'''P''' "
        f"{' '.join(islice(links, 300))}</text></revision></page>"
        for number in range(300)
    )
    dump = tmp_path / "d.xml.bz2"
    dump.write_bytes(bz2.compress(f"<mediawiki><siteinfo></siteinfo>{pages}</mediawiki>".encode(), 1))
    wikipedia.extract(dump, tmp_path / "local", workers=1)
    with chosen(ExecutorOptions(executor="ray"), None) as (map_in_order, workers):
        assert workers == 2
        mapped, killed = killing(cluster, map_in_order, 5)
        result = wikipedia.extract(dump, tmp_path / "ray", workers=workers, map_in_order=mapped)
    assert (killed, result.counts.written) == ([5], 300)
    same_files(tmp_path / "local", tmp_path / "ray")


def test_tokenizing_loses_a_node_and_no_byte(tmp_path, cluster, monkeypatch):
    monkeypatch.setattr("megabert.corpora.chunks._READ_BYTES", 50_000)
    monkeypatch.setattr(preprocess, "CHUNK_BYTES", 50_000)
    draw = random.Random(3)
    with (tmp_path / "a.jsonl").open("w") as file:
        for _ in range(20_000):
            text = " ".join(f"The {draw.choice(WORDS[1:5])} came near." for _ in range(1 + draw.randrange(9)))
            file.write(json.dumps({"text": text}) + "\n")
    tokenizer = from_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS], lower_case=True)
    for name in ("local", "ray"):
        (tmp_path / name).mkdir()
    tokenize([tmp_path / "a.jsonl"], tokenizer, tmp_path / "local" / "out", workers=1)
    with chosen(ExecutorOptions(executor="ray"), None) as (map_in_order, workers):
        mapped, killed = killing(cluster, map_in_order, 5)
        tokenize([tmp_path / "a.jsonl"], tokenizer, tmp_path / "ray" / "out", workers=workers, map_in_order=mapped)
    assert killed == [5]
    same_files(tmp_path / "local", tmp_path / "ray")
