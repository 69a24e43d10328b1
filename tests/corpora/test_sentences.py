import pytest

from megabert.corpora import sentences


def test_abbreviations_do_not_end_a_sentence():
    assert sentences.split("Dr. Smith went home. He slept, e.g. at 3 p.m. yesterday!  Why?") == [
        "Dr. Smith went home.", "He slept, e.g. at 3 p.m. yesterday!", "Why?",
    ]  # fmt: skip


def test_lines_always_end_a_sentence():
    assert sentences.split("A heading\n\n  The text goes\non. And on.\n") == [
        "A heading", "The text goes", "on.", "And on.",
    ]  # fmt: skip


def test_presplit_lines_are_kept_whole():
    assert sentences.split("One. Two.\n\nThree.", presplit=True) == ["One. Two.", "Three."]


def test_a_long_line_is_read_in_pieces(monkeypatch):
    text = (
        "Dr. Smith went home. He slept, e.g. at 3 p.m. yesterday! Why? A longer sentence of U.S. origin follows here. "
        * 9
    )
    whole = sentences.split(text)
    for length in range(60, 110):
        monkeypatch.setattr(sentences, "_LONGEST_PIECE", length)
        assert sentences.split(text) == whole
    monkeypatch.setattr(sentences, "_LONGEST_SENTENCE", 100)
    assert max(map(len, sentences.split("word " * 100))) < 250


def test_other_languages_and_nothing():
    assert sentences.split("今日は。明日も。", language="ja") == ["今日は。", "明日も。"]
    assert sentences.split(" \n ") == []


def test_languages_without_rules_are_said():
    assert sentences.remark("en") == sentences.remark("de") == ""
    assert sentences.remark("xx").startswith("--lang xx: there are no rules of its own")
    with pytest.raises(ValueError, match="--lang: 'english' is not the code of a language"):
        sentences.remark("english")
