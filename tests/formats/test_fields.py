import math

import pytest

from megabert.formats import config_file, fields

HUGE = pytest.param(10**5000, id="huge")  # too long to be shown


@pytest.mark.parametrize("value", [None, True, "2", [2], {}, -1, 0, 2.5, math.nan, math.inf, 10**30, HUGE])
def test_a_size_is_a_whole_number(value):
    with pytest.raises(ValueError, match=r"^f: x is .*; a whole number from 1 to 1,000,000,000 is needed$") as raised:
        fields.whole(value, "f: x")
    assert len(str(raised.value)) < 200
    assert fields.whole(2.0, "x") == 2 and type(fields.whole(2.0, "x")) is int


@pytest.mark.parametrize("value", [None, True, "1e-5", [1], -2, 0, 1.5, math.nan, math.inf, HUGE])
def test_an_epsilon_is_a_small_number_above_zero(value):
    with pytest.raises(ValueError, match=r"^f: e is .*; a number above 0 to 1 is needed$"):
        fields.field("layer_norm_eps", value, "f: e")
    assert fields.field("layer_norm_eps", 1e-5, "e") == 1e-5 and fields.field("hidden_dropout_prob", 0, "e") == 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("hidden_act", [1]), ("hidden_act", {}), ("hidden_act", "x"), ("head_act", 1), ("architectures", "x"),
        ("architectures", [1]), ("id2label", [1]), ("tie_word_embeddings", 1), ("num_labels", 0),
        ("pad_token_id", -1), ("hidden_dropout_prob", 2), ("initializer_range", math.nan),
    ],
)  # fmt: skip
def test_fields_of_a_wrong_type_are_named(name, value):
    with pytest.raises(ValueError, match=f"^config.json: {name} is "):
        fields.checked({"hidden_size": 16, name: value}, "config.json")


def test_the_documents_config_file(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(
        '{"hidden-size": 128, "num-attention-heads": 4, "num-layers": 4, "max-seq-length": 64, "vocab-size":9}'
    )
    told = {"hidden_size": 128, "num_attention_heads": 4, "num_hidden_layers": 4, "max_position_embeddings": 64}
    assert config_file.read(path) == (told, [])
    path.write_text(
        '{"num_attention_heads": 4, "num-attention-heads": 4, "tokenizer_kind": "x", "layernorm_epsilon": 1e-12}'
    )
    changes, notes = config_file.read(path)
    assert changes == {"num_attention_heads": 4, "layer_norm_eps": 1e-12}
    assert notes == [f"left out, no fields of a Megatron BERT: tokenizer_kind of {path}"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"num_attention_head": 4}', r"'num_attention_head' is no field .*did you mean num_attention_heads"),
        ('{"num_attention_heads": 4, "num-attention-heads": 2}', "another spelling of it says 4"),
        ('{"num-layers": "4"}', "num-layers is '4'; a whole number"),
        ('{"hidden_size": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_mistakes_in_a_config_file(tmp_path, text, message):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=message):
        config_file.read(tmp_path / "config.json")
