import pytest
import torch
import transformers

import megabert
from megabert import config as configuration
from megabert.models.bert.config import Settings, make_config, settings
from megabert.models.options import ModelOptions


def make_options(**changes):
    return ModelOptions(**{"num_layers": 3, "hidden_size": 32, "num_attention_heads": 4, **changes})


def test_defaults_are_the_345m_model_and_megatrons_numerics():
    config = make_config(ModelOptions(), 30522)
    assert (config.num_hidden_layers, config.hidden_size, config.num_attention_heads) == (24, 1024, 16)
    assert (config.intermediate_size, config.max_position_embeddings, config.vocab_size) == (4096, 512, 30592)
    assert config.layer_norm_eps == 1e-5 and config.hidden_act == "gelu"
    assert settings(config) == Settings(head_act="gelu", scaled_output_init=True)
    assert config._attn_implementation == "sdpa"


def test_a_plain_config_means_transformers_behaviour():
    assert settings(transformers.MegatronBertConfig()) == Settings()


@pytest.mark.parametrize(
    "changes, mlp, head",
    [
        ({}, "gelu", "gelu"),
        ({"gelu": "tanh"}, "gelu_pytorch_tanh", "gelu"),
        ({"bias_gelu_fusion": True}, "gelu_pytorch_tanh", "gelu"),
        ({"bias_gelu_fusion": False, "gelu": "tanh"}, "gelu", "gelu"),
        ({"openai_gelu": True}, "gelu_pytorch_tanh", "gelu_pytorch_tanh"),
    ],
)
def test_both_gelus_can_be_chosen_and_survive_saving(changes, mlp, head, tmp_path):
    config = make_config(make_options(**changes), 100)
    model = megabert.MegatronBertForPreTraining(config)
    model.save_pretrained(tmp_path)
    again = megabert.MegatronBertForPreTraining.from_pretrained(tmp_path)
    assert again.config.hidden_act == mlp and settings(again.config).head_act == head
    tensor = torch.linspace(-3, 3, 50)
    for module, name in (
        (again.bert.encoder.layer[0].intermediate.intermediate_act_fn, mlp),
        (again.cls.predictions.transform.transform_act_fn, head),
    ):
        approximate = "tanh" if name == "gelu_pytorch_tanh" else "none"
        torch.testing.assert_close(module(tensor), torch.nn.functional.gelu(tensor, approximate=approximate))


def test_a_default_model_gives_the_same_logits_in_plain_transformers(tmp_path):
    model = megabert.MegatronBertForPreTraining(make_config(make_options(), 100)).eval()
    model.save_pretrained(tmp_path)
    theirs = transformers.MegatronBertForPreTraining.from_pretrained(tmp_path).eval()
    ids = torch.randint(1, 100, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).prediction_logits, theirs(ids).prediction_logits, rtol=1e-5, atol=1e-5)


def test_output_matrices_start_smaller():
    torch.manual_seed(0)
    for scaled, expected in ((True, 0.02 / 6**0.5), (False, 0.02)):
        options = make_options(hidden_size=64, scaled_init=scaled)
        model = megabert.MegatronBertForPreTraining(make_config(options, 100))
        layer = model.bert.encoder.layer[1]
        for dense in (layer.attention.output.dense, layer.output.dense):
            assert dense.weight.std().item() == pytest.approx(expected, rel=0.06)
            assert dense.bias.abs().sum() == 0
        assert layer.intermediate.dense.weight.std().item() == pytest.approx(0.02, rel=0.06)
        assert model.bert.embeddings.word_embeddings.weight[0].abs().sum() == 0
        assert model.cls.predictions.transform.dense.weight.std().item() == pytest.approx(0.02, rel=0.06)


def test_xavier_initialisation():
    torch.manual_seed(0)
    model = megabert.MegatronBertModel(make_config(make_options(init_method_xavier_uniform=True), 100))
    weight = model.encoder.layer[0].output.dense.weight
    bound = (6 / (32 + 128)) ** 0.5
    assert 0.98 * bound < weight.abs().max() <= bound
    assert model.embeddings.word_embeddings.weight[0].abs().sum() == 0


def test_residual_after_the_norm():
    """With matrices of zero each block adds nothing, so what is left is the residual: the normalised input."""
    plain = make_config(make_options(num_layers=1, hidden_dropout=0.0, attention_dropout=0.0), 100)
    after = make_config(
        make_options(
            num_layers=1, hidden_dropout=0.0, attention_dropout=0.0, apply_residual_connection_post_layernorm=True
        ),
        100,
    )
    ids = torch.randint(1, 100, (2, 9))
    results = []
    for config in (plain, after):
        torch.manual_seed(0)
        model = megabert.MegatronBertModel(config).eval()
        with torch.no_grad():
            for block in (model.encoder.layer[0].attention, model.encoder.layer[0]):
                block.output.dense.weight.zero_()
            layer = model.encoder.layer[0]
            embedded = model.embeddings(ids)
            results.append((layer(embedded)[0], embedded, layer.ln(layer.attention.ln(embedded))))
    torch.testing.assert_close(results[0][0], results[0][1])
    torch.testing.assert_close(results[1][0], results[1][2])


def test_heads_that_do_not_divide_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match=r"num_attention_heads 5 does not divide hidden_size 32 .*is 4"):
        make_config(make_options(num_attention_heads=5), 100)
    with pytest.raises(ValueError, match="num_attention_heads 5"):
        megabert.MegatronBertModel(transformers.MegatronBertConfig(hidden_size=32, num_attention_heads=5))
    with pytest.raises(ValueError, match="empty"):
        make_config(make_options(), 0)
    with pytest.raises(ValueError, match="scaled_output_init is 'yes'"):
        settings(transformers.MegatronBertConfig(scaled_output_init="yes"))


@pytest.mark.parametrize(
    "flags, field, value",
    [
        (["--ffn-hidden-size", "96"], "intermediate_size", 96),
        (["--norm-epsilon", "1e-12"], "layernorm_epsilon", 1e-12),
        (["--no-bias-gelu-fusion"], "bias_gelu_fusion", False),
        (["--bias-gelu-fusion"], "bias_gelu_fusion", True),
        (["--openai-gelu"], "openai_gelu", True),
        (["--deep-init"], "scaled_init", True),
        (["--no-scaled-init"], "scaled_init", False),
        (["--attention-backend", "eager"], "attention_implementation", "eager"),
        (["--untie-embeddings-and-output-weights"], "untie_embeddings_and_output_weights", True),
    ],
)
def test_flags(flags, field, value):
    assert getattr(configuration.parse(ModelOptions, flags, program="test"), field) == value


def test_untied_option():
    config = make_config(make_options(untie_embeddings_and_output_weights=True), 100)
    assert config.tie_word_embeddings is False


def test_the_token_type_table_may_start_at_zero():
    for zero in (False, True):
        options = ModelOptions(num_layers=1, hidden_size=8, num_attention_heads=2, zero_init_tokentypes=zero)
        model = megabert.MegatronBertForPreTraining(make_config(options, 50))
        assert bool(model.bert.embeddings.token_type_embeddings.weight.any()) is not zero
        assert model.bert.embeddings.position_embeddings.weight.any()
