import json

import pytest
import torch
from safetensors.torch import save_file

from megabert.formats import safetensors_header


def test_header_of_a_real_file(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros((), dtype=torch.bfloat16)}, path, metadata={"format": "pt"})
    assert safetensors_header.read(path) == {"a": ("F32", (2, 3)), "b": ("BF16", ())}
    assert safetensors_header.read(path)["a"].numbers == 6


def header(entries, body=b""):
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize(
    "content",
    [
        b"", b"\x01", b"\xff" * 8 + b"{}", (3).to_bytes(8, "little") + b"[[[", header([]), header({"a": 5}),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}),
        header({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, b"1234"),
        header({"a": {"dtype": "F32", "shape": [-1], "data_offsets": [4, 0]}}, b""),
        header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"12345"),
        header({"a": {"dtype": "F32", "shape": ["1"], "data_offsets": [0, 4]}}, b"1234"),
    ],
)  # fmt: skip
def test_damage_is_told(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged") as failure:
        safetensors_header.read(path)
    assert str(path) in str(failure.value)
