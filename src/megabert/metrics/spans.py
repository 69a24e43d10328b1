"""SQuAD's exact match and F1, version 1.1 and 2.0, as the official scripts compute them, in per cent.

Source: `evaluate-v1.1.py` and `evaluate-v2.0.py` of Rajpurkar et al. 2016 and 2018, whose numbers these equal.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b", re.UNICODE)


def normalised(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and runs of white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str, answer: str) -> float:
    """1.0 when both are equal once normalised, else 0.0."""
    return float(normalised(prediction) == normalised(answer))


def overlap_f1(prediction: str, answer: str, *, empty_matches: bool) -> float:
    """F1 of the bags of words, 0 to 1.

    Args:
        empty_matches: two texts without words agree (version 2.0); in version 1.1 they score 0.
    """
    ours, theirs = normalised(prediction).split(), normalised(answer).split()
    if not ours or not theirs:
        return float(empty_matches and ours == theirs)
    same = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * same / (len(ours) + len(theirs))


def _check(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> None:
    if not answers:
        raise ValueError("there is nothing to score: no question")
    missing = next((question for question in answers if question not in predictions), None)
    if missing is not None:
        raise ValueError(f"question {missing!r} has no prediction")


def squad1(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """Scores of version 1.1: `exact_match` and `f1`, the best over a question's answers, averaged, in per cent.

    Args:
        predictions: question's id -> text.
        answers: question's id -> its right answers, at least one.

    Raises:
        ValueError: a question without prediction or without answer, or no question.
    """
    _check(predictions, answers)
    exact = overlap = 0.0
    for question, texts in answers.items():
        if not texts:
            raise ValueError(f"question {question!r} has no answer: it is one of SQuAD 2.0")
        exact += max(exact_match(predictions[question], text) for text in texts)
        overlap += max(overlap_f1(predictions[question], text, empty_matches=False) for text in texts)
    return {"exact_match": 100 * exact / len(answers), "f1": 100 * overlap / len(answers)}


def squad2(
    predictions: Mapping[str, str],
    answers: Mapping[str, Sequence[str]],
    null_scores: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Scores of version 2.0 in per cent: `exact`, `f1`, the same for questions with and without an answer
    (`HasAns_exact`, `NoAns_f1`, ...), and with `null_scores` the best threshold on them (`best_exact`,
    `best_exact_thresh`, `best_f1`, `best_f1_thresh`).

    Args:
        predictions: question's id -> text, empty for "no answer".
        answers: question's id -> right answers, none when there is none.
        null_scores: question's id -> how much speaks for "no answer"; above the threshold it is said. The texts in
            `predictions` should then be the best non-empty ones, as the official script has it.

    Raises:
        ValueError: a question without prediction, or no question.
    """
    _check(predictions, answers)
    exact: dict[str, float] = {}
    overlap: dict[str, float] = {}
    answerable = {question: bool(texts) for question, texts in answers.items()}
    for question, texts in answers.items():
        # The official script asks for answers that have words left; without any, the empty text is right.
        wanted = [text for text in texts if normalised(text)] or [""]
        exact[question] = max(exact_match(predictions[question], text) for text in wanted)
        overlap[question] = max(overlap_f1(predictions[question], text, empty_matches=True) for text in wanted)
    result = {"exact": _mean(exact), "f1": _mean(overlap)}
    for name, kind in (("HasAns", True), ("NoAns", False)):
        chosen = [question for question, has in answerable.items() if has == kind]
        if chosen:
            result[f"{name}_exact"] = _mean({question: exact[question] for question in chosen})
            result[f"{name}_f1"] = _mean({question: overlap[question] for question in chosen})
            result[f"{name}_total"] = float(len(chosen))
    if null_scores is not None:
        for name, scores in (("exact", exact), ("f1", overlap)):
            best, threshold = best_threshold(predictions, scores, null_scores, answerable)
            result |= {f"best_{name}": best, f"best_{name}_thresh": threshold}
    return result


def _mean(scores: Mapping[str, float]) -> float:
    return 100 * sum(scores.values()) / len(scores)


def best_threshold(
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_scores: Mapping[str, float],
    answerable: Mapping[str, bool],
) -> tuple[float, float]:
    """The best mean score (per cent) when "no answer" is said above a threshold, and that threshold.

    Starts with "no answer" everywhere, and lets questions answer one by one, those first that speak least for none.
    As in the official script a threshold may fall between equal scores, and is 0.0 when nothing should be answered.
    """
    current = best = float(sum(not has for has in answerable.values()))
    threshold = 0.0
    for question in sorted(null_scores, key=lambda name: null_scores[name]):
        if question not in scores:
            continue
        if answerable[question]:
            current += scores[question]
        elif predictions[question]:
            current -= 1
        if current > best:
            best, threshold = current, null_scores[question]
    return 100 * best / len(scores), threshold


def nemo_squad(predictions: Mapping[str, str], answers: Mapping[str, Sequence[str]]) -> dict[str, float]:
    """What NeMo 1.x logged as `exact_match` and `f1`: the 2.0 script's best threshold on constant scores.

    With every score 0 the search takes the best prefix of the questions in their order: on version 1.1 the plain score,
    on 2.0 a little more than it. For comparison with NeMo's logs only.

    Raises:
        ValueError: a question without prediction, or no question.
    """
    scored = squad2(predictions, answers, dict.fromkeys(answers, 0.0))
    return {"exact_match": scored["best_exact"], "f1": scored["best_f1"]}
