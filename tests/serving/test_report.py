import math

from megabert.serving import report


def test_sparkline():
    assert report.sparkline([1, 2, 3, 4, 5, 6, 7, 8]) == "▁▂▃▄▅▆▇█"
    assert report.sparkline([8.0, math.nan, 1.0, math.inf]) == "█▁"
    assert report.sparkline([3.0, 3.0]) == "▁▁"
    assert report.sparkline([]) == ""
    assert len(report.sparkline(list(range(1000)), width=60)) == 60
    assert report.sparkline([0, 0, 10, 10], width=2) == "▁█"


def test_histogram_of_whole_numbers():
    lines = report.histogram([0, 1.5, 3, 4, 10], [2, 0, 4, 1], width=4)
    assert lines == [
        "   0 to 1  ██    2",
        "        2        0",
        "        3  ████  4",
        "4 or more  █     1",
    ]
    assert report.histogram([0, 0.5, 0.9, 2], [1, 0, 3], width=2) == ["        0  █   1", "1 or more  ██  3"]
    assert report.histogram([0, 1], [0], width=2) == ["0 or more      0"]


def test_table_and_amount():
    assert report.table({"a": 1234, "long": 0.5, "none": None, "flag": True, "list": ["x", 1]}) == [
        "a     1,234", "long  0.5", "flag  yes", "list  x 1",
    ]  # fmt: skip
    assert report.table({}) == []
    assert [report.amount(value, "B") for value in (0, 999, 1500, 2e9, 3e12)] == [
        "0 B", "999 B", "1.5 kB", "2.0 GB", "3.0 TB",
    ]  # fmt: skip
    assert report.amount(336_226_108) == "336.2 M"
