"""Our scores beside those of libraries that papers name, and of definitions written anew, on random hard cases."""

import collections
import itertools
import math
import random
import re
import warnings

import pytest

from megabert.metrics import classification, entities, spans

SCHEMES = {"iob1": "BI", "iob2": "BI", "iobes": "BIES", "bilou": "BILU"}


def random_tags(generator, prefixes, sentences=12):
    """Sentences of tags in any order: most are no well-formed sequences of any scheme."""
    tags = ["O", "O", *(f"{prefix}-{kind}" for prefix in prefixes for kind in ("A", "B-C", "D"))]
    lengths = [generator.randint(1, 12) for _ in range(sentences)]
    return [[generator.choice(tags) for _ in range(length)] for length in lengths]


def disturbed(generator, sentences):
    """The same, some tags changed: predictions that are right in part."""
    every = sorted({tag for tags in sentences for tag in tags})
    return [[generator.choice(every) if generator.random() < 0.2 else tag for tag in tags] for tags in sentences]


@pytest.mark.parametrize("seed", range(15))
@pytest.mark.parametrize("name", SCHEMES)
def test_entities_as_seqeval(name, seed):
    reference = pytest.importorskip("seqeval.metrics", reason="seqeval is in the extra `test`")
    import seqeval.scheme

    generator = random.Random(seed)
    gold = random_tags(generator, SCHEMES[name])
    given = disturbed(generator, gold)
    ours = "iobes" if name == "bilou" else name
    modes = {False: {}, True: {"mode": "strict", "scheme": getattr(seqeval.scheme, name.upper())}}
    if name == "bilou":
        del modes[False]  # its default mode reads L and U as if they were I
    if name == "iob1":
        del modes[True]  # whoever reads IOB1 strictly refuses a B that is not needed; conlleval takes it
    for strict, mode in modes.items():
        scores = entities.entity_scores(gold, given, ours, strict=strict)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for average in ("micro", "macro"):
                theirs = [getattr(reference, f"{score}_score")(gold, given, average=average, zero_division=0, **mode)
                          for score in ("precision", "recall", "f1")]  # fmt: skip
                assert getattr(scores, average)[:3] == pytest.approx(theirs), (strict, average)
            table = reference.classification_report(gold, given, output_dict=True, zero_division=0, **mode)
        for kind, row in scores.by_type.items():
            assert row == pytest.approx(
                [table[kind][part] for part in ("precision", "recall", "f1-score", "support")]
            ), (strict, kind)
        assert scores.tag_accuracy == pytest.approx(reference.accuracy_score(gold, given))


@pytest.mark.parametrize("seed", range(25))
def test_labels_as_scikit_learn(seed):
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the extra `test`")
    generator = random.Random(seed)
    labels = list("abcde")[: generator.randint(2, 5)]
    count = generator.choice([1, 2, 7, 200])
    gold = [generator.choice(labels[: generator.randint(1, len(labels))]) for _ in range(count)]
    given = [label if generator.random() < 0.6 else generator.choice(labels) for label in gold]
    assert classification.accuracy(gold, given) == pytest.approx(reference.accuracy_score(gold, given))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert classification.matthews(gold, given) == pytest.approx(reference.matthews_corrcoef(gold, given))
    assert classification.confusion(gold, given, labels) == reference.confusion_matrix(
        gold, given, labels=labels
    ).tolist()  # fmt: skip
    table = classification.per_class(gold, given, labels)
    every = reference.precision_recall_fscore_support(gold, given, labels=labels, zero_division=0)
    assert [list(row) for row in table.values()] == [pytest.approx(list(row)) for row in zip(*every, strict=True)]
    some = labels[1:]  # as relation extraction leaves out "no relation"
    found = {
        "macro": classification.macro(table.values()), "weighted": classification.weighted(table.values()),
        "micro": classification.micro(gold, given, some),
    }  # fmt: skip
    for average, scores in found.items():
        chosen = some if average == "micro" else labels
        theirs = reference.precision_recall_fscore_support(gold, given, labels=chosen, average=average, zero_division=0)
        assert scores[:3] == pytest.approx(theirs[:3]), average


@pytest.mark.parametrize("seed", range(25))
def test_correlations_as_scipy(seed):
    reference = pytest.importorskip("scipy.stats", reason="SciPy comes with scikit-learn, in the extra `test`")
    generator = random.Random(seed)
    count = generator.choice([2, 3, 10, 500])
    # Many ties, large offsets, and numbers of very different size.
    kind = seed % 3
    if kind == 0:
        gold = [float(generator.randint(0, 5)) for _ in range(count)]
        given = [value + generator.choice([-1.0, 0.0, 0.0, 1.0]) for value in gold]
    elif kind == 1:
        gold = [1e6 + generator.gauss(0, 1) for _ in range(count)]
        given = [-0.3 * value + generator.gauss(0, 1) for value in gold]
    else:
        gold = [math.exp(generator.gauss(0, 6)) for _ in range(count)]
        given = [value * generator.random() for value in gold]
    if len(set(gold)) < 2 or len(set(given)) < 2:
        assert classification.pearson(gold, given) == classification.spearman(gold, given) == 0.0
        return
    assert classification.pearson(gold, given) == pytest.approx(reference.pearsonr(gold, given)[0], abs=1e-9)
    assert classification.spearman(gold, given) == pytest.approx(reference.spearmanr(gold, given)[0], abs=1e-9)
    assert classification.ranks(gold) == reference.rankdata(gold).tolist()


PARTS = ["the", "The", "a", "an", "AN", "cat", "Cat's", "cats", "U.S.", "3.5", "-", "--", "«x»", "", "  ", "\t", "é",
         "É", "a.", "(the)", "the-cat", "thé", "x_y", "½", "İ", "\u00a0", "\u2019s", "theory"]  # fmt: skip


def letters_of(text):
    """SQuAD's normal form, from its definition: lower case, no ASCII punctuation, no articles, single spaces."""
    kept = "".join(c for c in text.lower() if not (33 <= ord(c) <= 126 and not c.isalnum()))
    without = []
    for part in re.split(r"(\W+)", kept):
        without.append(" " if part in ("a", "an", "the") else part)
    return "".join(without).split()


def f1_of(given, wanted):
    pool = list(wanted)
    same = 0
    for word in given:
        if word in pool:
            pool.remove(word)
            same += 1
    if same == 0:
        return 0.0
    precision, recall = same / len(given), same / len(wanted)
    return 2 * precision * recall / (precision + recall)


@pytest.mark.parametrize("seed", range(20))
def test_answers_by_the_definition(seed):
    """EM and F1 of both versions, and the threshold by trying every cut."""
    generator = random.Random(seed)

    def text():
        return generator.choice(["", " ", " "]).join(generator.choices(PARTS, k=generator.randint(0, 5)))

    answers, predictions, nulls = {}, {}, {}
    for number in range(40):
        golds = [text() or "cat" for _ in range(generator.randint(0, 3))]
        answers[str(number)] = golds
        told = generator.choice([*golds, text(), text().upper(), ""])
        predictions[str(number)] = told
        nulls[str(number)] = generator.uniform(-5, 5)

    asked = {name: golds for name, golds in answers.items() if golds}
    exact = [max(letters_of(predictions[name]) == letters_of(gold) for gold in golds) for name, golds in asked.items()]
    overlap = [
        max(f1_of(letters_of(predictions[name]), letters_of(gold)) for gold in golds) for name, golds in asked.items()
    ]
    scores = spans.squad1(predictions, asked)
    assert scores["exact_match"] == pytest.approx(100 * sum(exact) / len(exact))
    assert scores["f1"] == pytest.approx(100 * sum(overlap) / len(overlap))

    def of_version_2(name, said):
        golds = [letters_of(gold) for gold in answers[name] if letters_of(gold)] or [[]]
        words = letters_of(said)
        none = [float(words == gold) for gold in golds if not words or not gold]
        f1 = max([*none, *(f1_of(words, gold) for gold in golds if words and gold)])
        return float(any(words == gold for gold in golds)), f1

    every = {name: of_version_2(name, said) for name, said in predictions.items()}
    scores = spans.squad2(predictions, answers, nulls)
    groups = {"": every, "HasAns_": asked, "NoAns_": set(answers) - set(asked)}
    for (prefix, names), (at, kind) in itertools.product(groups.items(), enumerate(("exact", "f1"))):
        assert scores[f"{prefix}{kind}"] == pytest.approx(100 * sum(every[n][at] for n in names) / len(names)), prefix
    order = sorted(nulls, key=nulls.get)
    for at, kind in enumerate(("exact", "f1")):
        totals = []
        for cut in range(len(order) + 1):
            answered = set(order[:cut])
            right = [every[name][at] if golds and name in answered else 0 for name, golds in answers.items()]
            none = [not (name in answered and predictions[name]) for name, golds in answers.items() if not golds]
            totals.append(sum(right) + sum(none))
        assert scores[f"best_{kind}"] == pytest.approx(100 * max(totals) / len(answers))
        best = totals.index(max(totals))
        assert scores[f"best_{kind}_thresh"] == (nulls[order[best - 1]] if best else 0.0)


def test_what_nemo_logged_for_words_is_scikit_learns_macro_average():
    reference = pytest.importorskip("sklearn.metrics", reason="scikit-learn is in the extra `test`")
    generator = random.Random(0)
    gold = generator.choices(["O", "B", "I"], weights=[8, 1, 1], k=500)
    given = [tag if generator.random() < 0.8 else generator.choice(["O", "B", "I"]) for tag in gold]
    theirs = reference.precision_recall_fscore_support(gold, given, average="macro")[:3]
    assert entities.nemo_tokens(gold, given)[:3] == pytest.approx(theirs)
    assert collections.Counter(gold)["O"] > 350
