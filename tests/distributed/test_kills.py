from . import kills


def test_a_run_that_is_killed_three_times_ends_in_the_same_weights(tmp_path):
    kills.run(tmp_path, 3, seed=1, steps=20)
