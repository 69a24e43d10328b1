import hashlib
import json
import re

import huggingface_hub
import pytest
from http_server import serve

from megabert.formats import named
from megabert.formats.download import Digest
from megabert.formats.named_models import KNOWN, Known
from megabert.tokenization.published import canonical

WEIGHTS = b"PK" + bytes(range(256)) * 100


@pytest.fixture(autouse=True)
def network(monkeypatch):
    for name in ("HF_HUB_OFFLINE", "MEGABERT_CACHE", "MEGABERT_NAMES"):
        monkeypatch.delenv(name, raising=False)


def published(url, **more):
    return (Known(name="test-bert", spellings=frozenset({"test-bert", "bert-test"}), url=url, file="w.pt", **more),)


def test_a_path_wins(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "megatron-bert-345m-uncased").mkdir()
    assert named.resolve("megatron-bert-345m-uncased").path.is_dir()


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("megatron-bert-345m-uncased", "megatron-bert-345m-uncased"),
        ("megatron_bert_345m_cased", "megatron-bert-345m-cased"),
        ("nvidia/megatron-bert-uncased-345m", "megatron-bert-345m-uncased"),
        ("nvidia/megatron_bert_345m", None),
        ("biomegatron-bert-345m-cased", "biomegatron-bert-345m-cased"),
        ("BioMegatron345mUncased", "biomegatron-bert-345m-uncased"),
        ("biomegatron345m_biovocab_30k_cased", "biomegatron345m_biovocab_30k_cased"),
        ("biomegatron345m-biovocab-50k-uncased", "biomegatron345m_biovocab_50k_uncased"),
        ("megatron-uncased", "megatron-bert-uncased"),
        ("megatron_bert_cased", "megatron-bert-cased"),
    ],
)
def test_every_spelling_of_the_published_models(spelling, name):
    found = [known.name for known in KNOWN if canonical(spelling) in known.spellings]
    assert found == ([name] if name else [])


def test_fetches_weights_and_vocabulary_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MEGABERT_CACHE", str(tmp_path))
    with serve(WEIGHTS) as server, serve(b"[PAD]\n") as words:
        known = published(server.url, vocabulary_urls=("http://127.0.0.1:9/gone", words.url))
        place = named.resolve("Bert_Test", known=known, patience=0.0001)
        assert place.path == tmp_path / "test-bert" / "w.pt"
        assert place.path.read_bytes() == WEIGHTS
        assert place.vocabulary is not None and place.vocabulary.read_bytes() == b"[PAD]\n"
        assert server.url in place.said
    # The server is gone: what is in the cache is enough, under any of its names.
    assert named.resolve("test-bert", known=known).path == place.path
    assert named.resolve("bert-test", known=known).vocabulary == place.vocabulary
    place.path.write_bytes(WEIGHTS[:-1])
    with pytest.raises(ValueError, match="not the file that is expected"):
        named.resolve("test-bert", known=known)


def test_a_cut_download_is_no_model_and_is_gone_on_with(tmp_path):
    with serve(WEIGHTS) as server:
        server.cuts = [1000, 0, 0, 0, 0]
        known = published(server.url)
        with pytest.raises(ValueError, match=r"test-bert could not be fetched.*put it at .*test-bert/w\.pt"):
            named.resolve("test-bert", cache=tmp_path, known=known, patience=0.0001)
        assert named.resolve("test-bert", cache=tmp_path, known=known).path.read_bytes() == WEIGHTS
        assert server.requests[-1] == "bytes=1000-"


def test_a_vocabulary_that_failed_is_fetched_by_the_next_call(tmp_path):
    with serve(WEIGHTS) as server, serve(b"[PAD]\n") as words:
        words.status = 404
        known = published(server.url, vocabulary_urls=(words.url,))
        with pytest.raises(ValueError, match=r"404.*put it at .*vocab\.txt"):
            named.resolve("test-bert", cache=tmp_path, known=known)
        words.status = 200
        place = named.resolve("test-bert", cache=tmp_path, known=known)
        assert place.vocabulary is not None and place.vocabulary.read_bytes() == b"[PAD]\n"
        assert len(server.requests) == 1


def test_offline_says_which_file_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    url = "http://127.0.0.1:9/model.pt"
    with pytest.raises(ValueError) as raised:
        named.resolve("test-bert", cache=tmp_path, known=published(url))
    message = str(raised.value)
    assert "HF_HUB_OFFLINE" in message and url in message and "\n" not in message
    put_at = re.search(r"put it at (\S+)", message)
    assert put_at is not None
    target = tmp_path / "test-bert" / "w.pt"
    assert put_at[1] == str(target)
    with pytest.raises(ValueError, match=r"put it at .*cased/model_optim_rng\.pt, and http.*txt at .*cased/vocab\.txt"):
        named.resolve("megatron-bert-345m-uncased", cache=tmp_path)
    target.parent.mkdir()
    target.write_bytes(WEIGHTS)
    assert named.resolve("test-bert", cache=tmp_path, known=published(url)).path == target
    assert json.loads((tmp_path / "test-bert" / "w.pt.json").read_text())["size"] == len(WEIGHTS)


@pytest.mark.parametrize("suffix", [".nemo", ".zip", ".pt", ""])
def test_files_and_folders_that_the_user_put_into_the_cache(tmp_path, suffix):
    base = tmp_path / ("megatron-bert-345m-cased" + suffix)
    if suffix:
        base.write_bytes(WEIGHTS)
        (tmp_path / "megatron-bert-345m-cased-vocab.txt").write_text("[PAD]\n")
    else:
        (base / "release").mkdir(parents=True)
        (base / "latest_checkpointed_iteration.txt").write_text("release")
    place = named.resolve("megatron_bert_345m_cased", cache=tmp_path)
    assert place.path == base
    assert (place.vocabulary is not None) == bool(suffix)


def test_the_users_own_table(tmp_path, monkeypatch):
    data = tmp_path / "data"
    (data / "iter_0000010").mkdir(parents=True)
    (data / "vocab.txt").write_text("[PAD]\n")
    digest = hashlib.sha256(WEIGHTS).hexdigest()
    with serve(WEIGHTS) as server:
        (data / "names.toml").write_text(
            'mine = "iter_0000010"\n'
            f'megatron-bert-345m-uncased = "{data}/iter_0000010"\n'
            '[full]\npath = "iter_0000010"\nvocabulary = "vocab.txt"\n'
            f'[far]\nurl = "{server.url}?x=1"\nsha256 = "{digest}"\nsize = {len(WEIGHTS)}\n'
            f'vocabulary = "{server.url}"\n'
            f'[wrong]\nurl = "{server.url}"\nsha256 = "{"0" * 64}"\nsize = {len(WEIGHTS)}\n'
        )
        monkeypatch.setenv("MEGABERT_NAMES", str(data / "names.toml"))
        cache = tmp_path / "cache"
        assert named.resolve("mine", cache=cache).path == data / "iter_0000010"
        assert named.resolve("megatron-bert-345m-uncased", cache=cache).path == data / "iter_0000010"
        assert named.resolve("full", cache=cache).vocabulary == data / "vocab.txt"
        far = named.resolve("far", cache=cache)
        assert far.path == cache / "far" / "model.pt" and far.path.read_bytes() == WEIGHTS
        assert far.vocabulary == cache / "far" / "vocab.txt"
        with pytest.raises(ValueError, match="are expected; they were thrown away"):
            named.resolve("wrong", cache=cache)
        assert not (cache / "wrong" / "model.pt").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("mine = 3", "path or an address"),
        ('[mine]\npath = "a"\nurl = "b"', "either `path` or `url`"),
        ('[mine]\npaht = "a"\nurl = "http://x/y"', r"unknown key 'paht' \(did you mean path\?\)"),
        ('[mine]\nurl = "http://x/y"\nsha256 = "00"', "together"),
        ('[mine]\nurl = "http://x/y"\nsize = "1"', "size"),
        ('[mine]\nurl = "http://x/y"\nfile = "../y"', "not the name of a file"),
        ('mine = "nowhere"', "no file or folder .*nowhere"),
        ("mine = ", "not valid TOML"),
    ],
)
def test_mistakes_in_the_table_are_named(tmp_path, line, message):
    (tmp_path / "names.toml").write_text(line)
    with pytest.raises(ValueError, match=message) as raised:
        named.resolve("mine", cache=tmp_path)
    assert str(tmp_path / "names.toml") in str(raised.value)


def test_what_is_a_name(tmp_path):
    (tmp_path / "names.toml").write_text('mine = "x"')
    assert named.is_name("mine", cache=tmp_path) and named.is_name("megatron_bert_345m_cased", cache=tmp_path)
    assert not named.is_name("runs/demo", cache=tmp_path) and not named.is_name("runs", cache=tmp_path)


def test_a_name_that_leads_nowhere_stops(tmp_path):
    with pytest.raises(ValueError, match=r"no model has that name \(did you mean megatron-bert-345m-uncased\?\)"):
        named.resolve("megatron-bert-345-uncased", cache=tmp_path)
    with pytest.raises(ValueError, match="names a family of models, not one with weights"):
        named.resolve("megatron-bert-uncased", cache=tmp_path)
    for path in ("/no/such/file", "weights.pt", "./x", "a/b/c"):
        with pytest.raises(ValueError, match=f"there is no file or folder {re.escape(path)}"):
            named.resolve(path, cache=tmp_path)
    with pytest.raises(ValueError, match="no table of names"):
        named.resolve("mine", cache=tmp_path, table=tmp_path / "gone.toml")


def test_hub_ids(tmp_path, monkeypatch):
    asked = []

    def snapshot(name, *, allow_patterns, local_files_only, etag_timeout):
        asked.append((name, local_files_only))
        (tmp_path / "config.json").write_text("{}")
        if "*.bin" in allow_patterns:
            (tmp_path / "pytorch_model.bin").write_bytes(WEIGHTS)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert named.resolve("EMBO/BioMegatron345mCased", cache=tmp_path / "c").path == tmp_path
    assert asked == [("EMBO/BioMegatron345mCased", False)] * 2
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    named.resolve("EMBO/BioMegatron345mCased", cache=tmp_path / "c")
    assert asked[-1] == ("EMBO/BioMegatron345mCased", True)

    def fail(name, **options):
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        ValueError, match=r"\(no route to host\); put its files .* into .*c/UFNLP--gatortron-base"
    ) as raised:
        named.resolve("UFNLP/gatortron-base", cache=tmp_path / "c")
    assert "\n" not in str(raised.value)


def test_digests_of_the_vocabularies_are_whole():
    for known in KNOWN:
        assert known.vocabulary_digest is None or re.fullmatch("[0-9a-f]{64}", known.vocabulary_digest.sha256)
    assert Digest(1, "a") == Digest(1, "a")
