import numpy as np
import pytest

from megabert.data.masking import choose_ngrams, choose_tokens, choose_words, mask, most_predictions, quota, quotas

CONTINUATION = np.zeros(1000, bool)
CONTINUATION[500:] = True


def words_of(ids):
    """A word's number for each token; specials (ids below 5) part words."""
    numbers, number = [], 0
    for place, token in enumerate(ids):
        number += not CONTINUATION[token] or (place > 0 and ids[place - 1] < 5)
        numbers.append(number)
    return np.array(numbers)


def sample(generator, length=120):
    ids = np.where(
        generator.random(length) < 0.35, generator.integers(500, 1000, length), generator.integers(5, 500, length)
    )
    ids[[0, 60, -1]] = [1, 2, 2]
    return ids, ids >= 5


def run(method, ids, maskable, count, generator):
    return mask(ids, maskable, CONTINUATION, count, generator, method=method, mask_id=3, vocabulary_size=1000)


def test_the_quota_is_megatrons():
    assert quota(512, 509, 0.15, 80) == 76
    assert quota(128, 125, 0.15, 20) == 18  # 0.15 * 125 = 18.75 is not exceeded
    assert quota(40, 125, 0.15, 20) == 6
    assert quota(5, 125, 0.15, 20) == 1
    assert quota(5, 3, 0.15, 20) == 0
    assert quota(512, 509, 0.5, 80) == 80
    lengths, targets = np.meshgrid(np.arange(3, 513), [2, 20, 125, 509])
    wanted = [quota(n, target, 0.15, 60) for n, target in zip(lengths.flat, targets.flat, strict=True)]
    assert quotas(lengths.ravel(), targets.ravel(), 0.15, 60).tolist() == wanted
    assert [most_predictions(length, 0.15) for length in (512, 128, 8)] == [80, 20, 8]


@pytest.mark.parametrize("method", ["token", "whole-word", "ngram"])
def test_what_is_masked(method):
    generator = np.random.default_rng(0)
    share = 0
    for _ in range(200):
        ids, maskable = sample(generator)
        before = ids.copy()
        masked, places, labels = run(method, ids, maskable, 18, generator)
        assert np.array_equal(ids, before)
        assert np.all(np.diff(places) > 0) and len(places) <= 18
        assert np.array_equal(ids[places], labels) and maskable[places].all()
        others = np.ones(len(ids), bool)
        others[places] = False
        assert np.array_equal(masked[others], ids[others])
        share += len(places)
        if method != "token":
            numbers = words_of(ids)
            chosen = np.isin(np.arange(len(ids)), places)
            for number in np.unique(numbers[places]):
                assert chosen[(numbers == number) & maskable].all()
    assert share / 200 > 17.5


def test_eighty_ten_ten():
    generator = np.random.default_rng(1)
    ids = np.full(200_000, 7)
    masked, places, _ = run("token", ids, np.ones(len(ids), bool), 100_000, generator)
    values = masked[places]
    assert abs(np.mean(values == 3) - 0.8) < 0.005
    assert abs(np.mean(values == 7) - 0.1) < 0.005
    assert np.unique(values).size > 990


def test_every_token_is_as_likely():
    generator = np.random.default_rng(2)
    hits = np.zeros(30)
    for _ in range(3000):
        hits[choose_tokens(np.arange(30), 5, generator)] += 1
    assert np.all(abs(hits / 3000 - 5 / 30) < 0.03)


def greedy(order, sizes, count):
    chosen, room = [], count
    for word in order:
        if sizes[word] <= room:
            chosen.append(word)
            room -= sizes[word]
    return sorted(chosen)


def test_whole_words_are_taken_greedily():
    for seed in range(200):
        continues = np.random.default_rng(seed + 1000).random(40) < 0.6
        starts = [n for n in range(40) if n == 0 or not continues[n]]
        sizes = np.diff([*starts, 40])
        order = np.random.default_rng(seed).permutation(len(starts))
        wanted = [n for word in greedy(order, sizes, 9) for n in range(starts[word], starts[word] + sizes[word])]
        assert choose_words(np.arange(40), continues, 9, np.random.default_rng(seed)).tolist() == wanted


def test_lengths_of_ngrams():
    generator = np.random.default_rng(3)
    lengths = []
    for _ in range(4000):
        places = choose_ngrams(np.arange(1000), np.zeros(1000, bool), 3, generator)
        # The first run is drawn freely; the rest of the quota is filled by shorter ones. Far apart in 1000 words.
        runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
        lengths.append(max(len(run) for run in runs))
    # 3 words: first draw 3 (0.182). 2 words: first draw 2 (0.273), or 1 (0.545) and then 2 or 3 cut to 2 (0.455).
    assert abs(np.mean(np.array(lengths) == 3) - 0.182) < 0.03
    assert abs(np.mean(np.array(lengths) == 2) - (0.273 + 0.545 * 0.455)) < 0.03


def literal_ngrams(candidates, continues, count, generator):
    """The choice as the specification tells it."""
    words = []
    for place, more in zip(candidates.tolist(), continues.tolist(), strict=True):
        if more and words and words[-1][-1] == place - 1:
            words[-1].append(place)
        else:
            words.append([place])
    weights = np.array([1, 1 / 2, 1 / 3])
    chosen = set()
    for start in generator.permutation(len(words)):
        if len(chosen) >= count:
            break
        most = min(len(words) - start, 3)
        number = generator.choice(np.arange(1, most + 1), p=weights[:most] / weights[:most].sum())
        while number and len(chosen) + sum(map(len, words[start : start + number])) > count:
            number -= 1
        run = {place for word in words[start : start + number] for place in word}
        if not run & chosen:
            chosen |= run
    return np.array(sorted(chosen))


def test_ngrams_are_chosen_as_specified():
    generator = np.random.default_rng(5)
    continues = generator.random(60) < 0.3
    candidates = np.delete(np.arange(62), [0, 30])
    hits, runs = np.zeros((2, 62)), np.zeros((2, 20))
    for _ in range(4000):
        for row, choose in enumerate((choose_ngrams, literal_ngrams)):
            places = choose(candidates, continues, 9, generator)
            hits[row, places] += 1
            for run in np.split(places, np.flatnonzero(np.diff(places) > 1) + 1):
                runs[row, len(run)] += 1
    assert np.all(abs(hits[0] - hits[1]) < 5 * np.sqrt(hits.max()))
    assert np.all(abs(runs[0] - runs[1]) < 5 * np.sqrt(runs.max(axis=0) + 1))


def test_nothing_to_mask():
    generator = np.random.default_rng(4)
    for method in ("token", "whole-word", "ngram"):
        masked, places, _ = run(method, np.array([1, 2, 2]), np.zeros(3, bool), 1, generator)
        assert masked.tolist() == [1, 2, 2] and len(places) == 0
        assert len(run(method, np.array([1, 9, 2]), np.array([False, True, False]), 0, generator)[1]) == 0
