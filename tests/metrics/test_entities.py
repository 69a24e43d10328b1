import pytest

from megabert.metrics import entities
from megabert.metrics.entities import Span, entity_scores, find_scheme, spans_of, strict_spans_of


@pytest.mark.parametrize(
    ("tags", "lenient", "strict"),
    [
        ("B-A I-A O B-B", [(0, 2, "A"), (3, 4, "B")], [(0, 2, "A"), (3, 4, "B")]),
        ("B-A B-A I-A", [(0, 1, "A"), (1, 3, "A")], [(0, 1, "A"), (1, 3, "A")]),
        ("O I-A I-A", [(1, 3, "A")], []),  # begins with I: an entity to conlleval, none strictly
        ("B-A I-B", [(0, 1, "A"), (1, 2, "B")], [(0, 1, "A")]),  # another type inside
        ("I-A B-A", [(0, 1, "A"), (1, 2, "A")], [(1, 2, "A")]),
        ("B I O B", [(0, 2, "_"), (3, 4, "_")], [(0, 2, "_"), (3, 4, "_")]),  # no types
        ("B-x.y-z I-x.y-z", [(0, 2, "x.y-z")], [(0, 2, "x.y-z")]),  # types may have hyphens
        ("O O", [], []),
    ],
)
def test_iob2(tags, lenient, strict):
    assert spans_of(tags.split(), "iob2") == lenient
    assert strict_spans_of(tags.split(), "iob2") == strict


def test_iob1_has_b_only_between_neighbours_of_one_type():
    assert spans_of("I-A I-A B-A I-B O I-A".split(), "iob1") == [(0, 2, "A"), (2, 3, "A"), (3, 4, "B"), (5, 6, "A")]
    assert strict_spans_of(["I-A"], "iob1") == [Span(0, 1, "A")]


@pytest.mark.parametrize(
    ("tags", "lenient", "strict"),
    [
        ("S-A B-A I-A E-A", [(0, 1, "A"), (1, 4, "A")], [(0, 1, "A"), (1, 4, "A")]),
        ("B-A E-A E-A", [(0, 2, "A"), (2, 3, "A")], [(0, 2, "A")]),  # an end without a begin
        ("B-A I-A O", [(0, 2, "A")], []),  # never ended
        ("B-A E-B", [(0, 1, "A"), (1, 2, "B")], []),
        ("S-A I-A", [(0, 1, "A"), (1, 2, "A")], [(0, 1, "A")]),
        ("U-A B-A L-A", [(0, 1, "A"), (1, 3, "A")], [(0, 1, "A"), (1, 3, "A")]),  # BILOU
    ],
)
def test_iobes(tags, lenient, strict):
    assert spans_of(tags.split(), "iobes") == lenient
    assert strict_spans_of(tags.split(), "iobes") == strict


def test_plain_labels_are_runs():
    assert spans_of(["PER", "PER", "O", "LOC"], "io") == [(0, 2, "PER"), (3, 4, "LOC")]
    with pytest.raises(ValueError, match="'PER' is neither O nor a prefix"):
        spans_of(["PER"], "iob2")


@pytest.mark.parametrize(
    ("sequences", "scheme"),
    [
        (["B-A I-A O", "B-B O O"], "iob2"),
        (["I-A I-A O", "I-A B-A O"], "iob1"),
        (["S-A O", "B-A E-A"], "iobes"),
        (["PER O"], "io"),
        (["O O"], "iob2"),
        (["O I-A", "O B-A", "B-A I-A"], "iob2"),  # an I too many does not make IOB1
    ],
)
def test_the_scheme_is_found(sequences, scheme):
    assert find_scheme(sequence.split() for sequence in sequences) == scheme


def test_scores_count_whole_entities():
    gold = ["B-A I-A O B-B".split(), "B-A O".split()]
    given = ["B-A O O B-B".split(), "B-A B-A".split()]
    scores = entity_scores(gold, given)
    # Wanted 3, said 4, right 2: the shortened one is wrong on both sides.
    assert scores.micro == (0.5, pytest.approx(2 / 3), pytest.approx(4 / 7), 3)
    assert scores.by_type["A"] == (pytest.approx(1 / 3), 0.5, pytest.approx(0.4), 2)
    assert scores.by_type["B"].f1 == 1
    assert scores.macro.f1 == pytest.approx(0.7)
    assert scores.tag_accuracy == pytest.approx(4 / 6)


def test_right_ends_of_the_wrong_type_are_wrong():
    assert entity_scores([["B-A"]], [["B-B"]]).micro.f1 == 0


def test_strictness_changes_the_score():
    gold, given = [["B-A", "I-A"]], [["I-A", "I-A"]]
    assert entity_scores(gold, given).micro.f1 == 1
    assert entity_scores(gold, given, strict=True).micro.f1 == 0


def test_unequal_sentences_are_refused():
    with pytest.raises(ValueError, match="sentence 2: 1 predicted tags do not fit 2 words"):
        entity_scores([["O"], ["O", "O"]], [["O"], ["O"]])


def test_what_nemo_logged_counts_words_and_o():
    gold, given = ["O", "O", "O", "B"], ["O", "O", "B", "B"]
    # O: precision 1, recall 2/3, F1 0.8; B: precision 0.5, recall 1, F1 2/3. I, which never occurs, is left out.
    assert entities.nemo_tokens(gold, given).f1 == pytest.approx((0.8 + 2 / 3) / 2)
