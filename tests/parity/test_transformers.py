"""All nine classes against Transformers' own, on the same weights, in float32 within 1e-5."""

import pytest
import torch
import transformers

import megabert

TOLERANCE = 1e-5
HEADS = [
    "MegatronBertModel", "MegatronBertForPreTraining", "MegatronBertForMaskedLM", "MegatronBertForCausalLM",
    "MegatronBertForNextSentencePrediction", "MegatronBertForSequenceClassification", "MegatronBertForMultipleChoice",
    "MegatronBertForTokenClassification", "MegatronBertForQuestionAnswering",
]  # fmt: skip
BATCH, LENGTH, VOCABULARY, WIDTH = 3, 11, 101, 32


def make_config(**changes):
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "num_labels": 2,
        "initializer_range": 0.2,
    }
    return transformers.MegatronBertConfig(**{**sizes, **changes})


def make_pair(name, kernel="sdpa", **changes):
    """Transformers' model and ours with the same weights; biases and norms are moved off their initial values."""
    torch.manual_seed(7)
    theirs = getattr(transformers, name)(make_config(**changes))
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    config = make_config(**changes)
    config._attn_implementation = kernel
    ours = getattr(megabert, name)(config)
    ours.load_state_dict(theirs.state_dict())
    return theirs.eval(), ours.eval()


def make_inputs(name):
    generator = torch.Generator().manual_seed(3)
    shape = (BATCH, 2, LENGTH) if "MultipleChoice" in name else (BATCH, LENGTH)
    mask = torch.ones(shape, dtype=torch.long)
    mask[1, ..., 7:] = 0
    return {
        "input_ids": torch.randint(1, VOCABULARY, shape, generator=generator),
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, shape, generator=generator),
    }


def make_labels(name):
    generator = torch.Generator().manual_seed(4)
    words = torch.randint(0, VOCABULARY, (BATCH, LENGTH), generator=generator)
    some = words.masked_fill(torch.rand(words.shape, generator=generator) < 0.6, -100)
    pairs = torch.tensor([0, 1, 1])
    return {
        "MegatronBertModel": {},
        "MegatronBertForPreTraining": {"labels": some, "next_sentence_label": pairs},
        "MegatronBertForMaskedLM": {"labels": some},
        "MegatronBertForCausalLM": {"labels": some},
        "MegatronBertForTokenClassification": {"labels": (some % 2).masked_fill(some == -100, -100)},
        "MegatronBertForQuestionAnswering": {
            "start_positions": torch.tensor([1, 50, 3]),
            "end_positions": torch.tensor([2, 50, 11]),
        },
    }.get(name, {"labels": pairs})


def tensors(output):
    flat = []
    for value in output:
        if isinstance(value, torch.Tensor):
            flat.append(value)
        elif isinstance(value, tuple):
            flat.extend(tensors(value))
    return flat


def assert_same(theirs, ours, real=None):
    theirs, ours = tensors(theirs), tensors(ours)
    assert [tensor.shape for tensor in ours] == [tensor.shape for tensor in theirs]
    for their_tensor, our_tensor in zip(theirs, ours, strict=True):
        torch.testing.assert_close(our_tensor, their_tensor, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_logits_losses_and_gradients(name, kernel):
    theirs, ours = make_pair(name, kernel)
    inputs = {**make_inputs(name), **make_labels(name)}
    their_output, our_output = theirs(**inputs), ours(**inputs)
    assert type(our_output).__name__ == type(their_output).__name__
    assert list(our_output.keys()) == list(their_output.keys())
    assert_same(their_output.to_tuple(), our_output.to_tuple())
    for output in (their_output, our_output):
        loss = output.get("loss")
        (output.pooler_output.square().sum() if loss is None else loss).backward()
    ours_by_name = dict(ours.named_parameters())
    for parameter_name, parameter in theirs.named_parameters():
        torch.testing.assert_close(
            ours_by_name[parameter_name].grad, parameter.grad, rtol=TOLERANCE, atol=TOLERANCE, msg=parameter_name
        )


@pytest.mark.parametrize("name", HEADS)
def test_training_mode_loss_and_gradients(name):
    """Without dropout, training mode must learn the same, although logits exist only at labels there."""
    theirs, ours = make_pair(name)
    theirs.train(), ours.train()
    inputs = {**make_inputs(name), **make_labels(name)}
    losses = []
    for model in (theirs, ours):
        output = model(**inputs)
        loss = output.pooler_output.square().sum() if name == "MegatronBertModel" else output.loss
        loss.backward()
        losses.append(loss.detach())
    torch.testing.assert_close(losses[1], losses[0], rtol=TOLERANCE, atol=TOLERANCE)
    ours_by_name = dict(ours.named_parameters())
    for parameter_name, parameter in theirs.named_parameters():
        torch.testing.assert_close(ours_by_name[parameter_name].grad, parameter.grad, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", HEADS)
def test_position_ids_embeddings_tuples_and_everything_recorded(name):
    theirs, ours = make_pair(name)
    inputs = make_inputs(name)
    ids = inputs.pop("input_ids")
    inputs["position_ids"] = torch.randint(0, 40, ids.shape)
    inputs["inputs_embeds"] = theirs.get_input_embeddings()(ids).detach() * 1.5
    recorded = {"output_hidden_states": True, "output_attentions": True}
    with torch.no_grad():
        assert_same(theirs(**inputs, return_dict=False), ours(**inputs, return_dict=False))
        their_output, our_output = theirs(**inputs, **recorded), ours(**inputs, **recorded)
        assert len(our_output.hidden_states) == 3 and len(our_output.attentions) == 2
        assert list(our_output.keys()) == list(their_output.keys())
        assert_same(their_output.to_tuple(), our_output.to_tuple())
        assert_same(theirs(**inputs, **recorded, return_dict=False), ours(**inputs, **recorded, return_dict=False))


@pytest.mark.parametrize("name", HEADS)
def test_same_keys_and_parameters(name):
    for changes in ({}, {"is_decoder": True, "add_cross_attention": True}):
        theirs, ours = make_pair(name, **changes)
        assert {key: value.shape for key, value in ours.state_dict().items()} == {
            key: value.shape for key, value in theirs.state_dict().items()
        }
        assert [key for key, _ in ours.named_parameters()] == [key for key, _ in theirs.named_parameters()]


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_near(name, dtype):
    theirs, ours = make_pair(name)
    inputs = {**make_inputs(name), **make_labels(name)}
    with torch.no_grad():
        exact = theirs(**inputs)
        ours.to(dtype)
        output = ours(**inputs)
    if name != "MegatronBertModel":
        assert output.loss.dtype == torch.float32
        torch.testing.assert_close(output.loss, exact.loss, rtol=0.05, atol=0.05)
    last = output.to_tuple()[-1]
    assert last.dtype == dtype
    scale = exact.to_tuple()[-1].abs().max()
    assert (last.float() - exact.to_tuple()[-1]).abs().max() < 0.06 * scale


def test_decoder_is_causal_and_its_cache_agrees():
    theirs, ours = make_pair("MegatronBertForCausalLM", is_decoder=True)
    inputs = make_inputs("")
    inputs["attention_mask"][:] = 1
    with torch.no_grad():
        expected, whole = theirs(**inputs), ours(**inputs)
        torch.testing.assert_close(whole.logits, expected.logits, rtol=TOLERANCE, atol=TOLERANCE)
        first = ours(inputs["input_ids"][:, :6], token_type_ids=inputs["token_type_ids"][:, :6], use_cache=True)
        rest = ours(
            inputs["input_ids"][:, 6:], token_type_ids=inputs["token_type_ids"][:, 6:],
            past_key_values=first.past_key_values, use_cache=True,
        )  # fmt: skip
    torch.testing.assert_close(first.logits, expected.logits[:, :6], rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(rest.logits, expected.logits[:, 6:], rtol=TOLERANCE, atol=TOLERANCE)
    assert rest.past_key_values.get_seq_length() == LENGTH


def test_decoder_with_padding_and_logits_to_keep():
    theirs, ours = make_pair("MegatronBertForCausalLM", is_decoder=True)
    inputs = make_inputs("")
    with torch.no_grad():
        for keep in (0, 2, torch.tensor([1, 4])):
            expected, given = theirs(**inputs, logits_to_keep=keep), ours(**inputs, logits_to_keep=keep)
            torch.testing.assert_close(given.logits, expected.logits, rtol=TOLERANCE, atol=TOLERANCE)


def test_generation_agrees_with_and_without_cache():
    theirs, ours = make_pair("MegatronBertForCausalLM", is_decoder=True)
    prompt = torch.randint(1, VOCABULARY, (2, 4))
    settings = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    expected = theirs.generate(prompt, **settings)
    assert torch.equal(ours.generate(prompt, **settings), expected)
    assert torch.equal(ours.generate(prompt, use_cache=False, **settings), expected)


def test_cross_attention_of_equal_lengths():
    theirs, ours = make_pair("MegatronBertModel", is_decoder=True, add_cross_attention=True)
    inputs = make_inputs("")
    states = torch.randn(BATCH, LENGTH, WIDTH)
    seen = torch.ones(BATCH, LENGTH, dtype=torch.long)
    seen[0, 5:] = 0
    extra = {
        "encoder_hidden_states": states,
        "encoder_attention_mask": seen,
        "output_attentions": True,
        "use_cache": False,
    }
    with torch.no_grad():
        expected, given = theirs(**inputs, **extra), ours(**inputs, **extra)
    assert len(given.cross_attentions) == 2
    assert_same(expected.to_tuple(), given.to_tuple())


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("encoder_length", [5, 12, 22])
def test_cross_attention_of_unequal_lengths(kernel, encoder_length):
    """Transformers fails here; padding the encoder's states to a length that it takes gives the expectation."""
    _, ours = make_pair("MegatronBertModel", kernel, is_decoder=True, add_cross_attention=True)
    inputs = make_inputs("")
    states = torch.randn(BATCH, encoder_length, WIDTH)
    padded = torch.cat([states, torch.randn(BATCH, 7, WIDTH)], dim=1)
    seen = torch.zeros(BATCH, encoder_length + 7, dtype=torch.long)
    seen[:, :encoder_length] = 1
    with torch.no_grad():
        plain = ours(**inputs, encoder_hidden_states=states, output_attentions=True)
        masked = ours(**inputs, encoder_hidden_states=padded, encoder_attention_mask=seen)
        first = ours(inputs["input_ids"][:, :4], encoder_hidden_states=states, use_cache=True)
        step = ours(inputs["input_ids"][:, 4:5], encoder_hidden_states=states, past_key_values=first.past_key_values)
        whole = ours(inputs["input_ids"][:, :5], encoder_hidden_states=states)
    assert plain.cross_attentions[0].shape == (BATCH, 4, LENGTH, encoder_length)
    torch.testing.assert_close(plain.last_hidden_state, masked.last_hidden_state, rtol=TOLERANCE, atol=TOLERANCE)
    torch.testing.assert_close(step.last_hidden_state, whole.last_hidden_state[:, 4:], rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize(
    "labels, changes",
    [
        (torch.tensor([0.3, -1.0, 2.0]), {"num_labels": 1}),
        (torch.tensor([2, 0, 1]), {"num_labels": 3}),
        (torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]), {"num_labels": 3}),
    ],
)
def test_problem_types(labels, changes):
    theirs, ours = make_pair("MegatronBertForSequenceClassification", **changes)
    inputs = make_inputs("")
    with torch.no_grad():
        expected, given = theirs(**inputs, labels=labels), ours(**inputs, labels=labels)
    torch.testing.assert_close(given.loss, expected.loss, rtol=TOLERANCE, atol=TOLERANCE)


@pytest.mark.parametrize("name", HEADS)
def test_folders_open_in_both_directions(name, tmp_path):
    theirs, ours = make_pair(name)
    inputs = make_inputs(name)
    for writer, reader_class, folder in (
        (theirs, getattr(megabert, name), tmp_path / "theirs"),
        (ours, getattr(transformers, name), tmp_path / "ours"),
        (ours, getattr(megabert, name), tmp_path / "own"),
    ):
        writer.save_pretrained(folder)
        reader, report = reader_class.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
        with torch.no_grad():
            assert_same(writer(**inputs).to_tuple(), reader.eval()(**inputs).to_tuple())
    config = transformers.AutoConfig.from_pretrained(tmp_path / "ours")
    assert config.model_type == "megatron-bert" and config.architectures == [name]
    assert type(config) is transformers.MegatronBertConfig
