"""What the classes do where Transformers' do something else: masks, labels, packing, accumulation, kernels."""

import subprocess
import sys

import pytest
import torch
import transformers
from transformers import AttentionInterface, Trainer, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward

import megabert
from megabert.models.auto import CLASSES, register_auto_classes

VOCABULARY, WIDTH, LENGTH = 67, 32, 12


def make_config(**changes):
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 48,
        "max_position_embeddings": 24,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.2,
    }
    return transformers.MegatronBertConfig(**{**sizes, **changes})


def make(name="MegatronBertForPreTraining", kernel="sdpa", **changes):
    torch.manual_seed(0)
    config = make_config(**changes)
    config._attn_implementation = kernel
    return getattr(megabert, name)(config).eval()


@pytest.fixture
def ids():
    return torch.randint(1, VOCABULARY, (3, LENGTH), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(ids):
    chosen = torch.rand(ids.shape, generator=torch.Generator().manual_seed(2)) < 0.3
    return ids.masked_fill(~chosen, -100)


def assert_near(given, expected, tolerance=1e-5):
    torch.testing.assert_close(given, expected, rtol=tolerance, atol=tolerance)


def gradients(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


# --- attention kernels


def test_sdpa_is_the_default_and_others_can_be_set():
    model = megabert.MegatronBertModel(make_config())
    assert model.config._attn_implementation == "sdpa"
    model.set_attn_implementation("eager")
    assert model.config._attn_implementation == "eager"
    assert model.encoder.layer[0].attention.self.config._attn_implementation == "eager"
    with pytest.raises(ValueError, match="no_such_kernel"):
        model.set_attn_implementation("no_such_kernel")


def test_a_registered_kernel_is_called_in_every_layer_with_the_mask(ids):
    calls = []

    def counting(module, query, key, value, attention_mask, **kwargs):
        calls.append(attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, is_causal=False, **kwargs)

    AttentionInterface.register("counting", counting)
    mask = torch.ones_like(ids)
    mask[0, 5:] = 0
    expected = make()(ids, attention_mask=mask).prediction_logits
    model = make()
    model.set_attn_implementation("counting")
    assert_near(model(ids, attention_mask=mask).prediction_logits, expected)
    assert len(calls) == 2 and calls[0] is not None
    recorded = model(ids, attention_mask=mask, output_attentions=True)
    assert len(calls) == 2, "weights are asked for, so this call is written out"
    assert recorded.attentions[0].shape == (3, 4, LENGTH, LENGTH)
    assert_near(recorded.prediction_logits, expected)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_masks_of_three_and_four_dimensions(ids, kernel):
    model = make("MegatronBertModel", kernel)
    flat = torch.ones_like(ids)
    flat[0, 5:] = 0
    expected = model(ids, attention_mask=flat).last_hidden_state
    square = flat[:, None, :].expand(-1, LENGTH, -1)
    additive = torch.zeros(3, 1, LENGTH, LENGTH).masked_fill_(square[:, None] == 0, torch.finfo(torch.float32).min)
    infinite = torch.zeros(3, 1, LENGTH, LENGTH).masked_fill_(square[:, None] == 0, -torch.inf)
    for mask in (flat.bool(), flat.float(), square, square.bool(), square.bool()[:, None], additive, infinite):
        assert_near(model(ids, attention_mask=mask).last_hidden_state, expected)
    with pytest.raises(ValueError, match="must be boolean"):
        model(ids, attention_mask=square.float())
    with pytest.raises(ValueError, match="shape"):
        model(ids, attention_mask=flat[0])


@pytest.mark.parametrize("training", [False, True])
def test_a_row_where_everything_is_forbidden_stays_finite(ids, training):
    model = make("MegatronBertModel").train(training)
    mask = torch.ones_like(ids)
    mask[1] = 0
    output = model(ids, attention_mask=mask).last_hidden_state
    assert output.isfinite().all()
    output.square().sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.encoder.parameters())


# --- packing


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("training", [False, True])
def test_packed_rows_equal_separate_rows(kernel, training):
    """Two samples of 7 and 4 tokens and a place of padding in one row, against two rows."""
    model = make(kernel=kernel).train(training)
    first, second = torch.randint(1, VOCABULARY, (7,)), torch.randint(1, VOCABULARY, (4,))
    packed = model(
        torch.cat([first, second, torch.zeros(1, dtype=torch.long)])[None],
        token_type_ids=torch.tensor([[0, 0, 0, 1, 1, 1, 1, 0, 0, 1, 1, 0]]),
        position_ids=torch.tensor([[*range(7), *range(4), 0]]),
        sample_ids=torch.tensor([[1] * 7 + [2] * 4 + [0]]),
        sample_starts=torch.tensor([[0, 7]]),
        masked_positions=torch.tensor([[2, 5, 8, 0]]),
    )
    assert packed.prediction_logits.shape == (1, 4, VOCABULARY)
    assert packed.seq_relationship_logits.shape == (1, 2, 2)
    one = model(first[None], token_type_ids=torch.tensor([[0, 0, 0, 1, 1, 1, 1]]))
    two = model(second[None], token_type_ids=torch.tensor([[0, 0, 1, 1]]))
    assert_near(packed.prediction_logits[0, :2], one.prediction_logits[0, [2, 5]])
    assert_near(packed.prediction_logits[0, 2], two.prediction_logits[0, 1])
    assert_near(packed.seq_relationship_logits[0, 0], one.seq_relationship_logits[0])
    assert_near(packed.seq_relationship_logits[0, 1], two.seq_relationship_logits[0])


def test_padding_of_a_row_changes_nothing(ids):
    model = make()
    alone = model(ids[:1, :5], sample_starts=torch.tensor([[0]]), masked_positions=torch.tensor([[1, 3]]))
    padded_ids = ids[:1].clone()
    padded_ids[0, 5:] = 0
    padded = model(
        padded_ids, sample_ids=torch.tensor([[1] * 5 + [0] * 7]), sample_starts=torch.tensor([[0]]),
        masked_positions=torch.tensor([[1, 3]]),
    )  # fmt: skip
    assert_near(padded.prediction_logits, alone.prediction_logits)
    assert_near(padded.seq_relationship_logits, alone.seq_relationship_logits)


def test_arguments_that_would_be_ignored_are_refused(ids):
    with pytest.raises(ValueError, match="sample_ids"):
        make()(ids, cu_seq_lens_q=torch.tensor([0, 5, 12]))
    with pytest.raises(ValueError, match="add_cross_attention"):
        make("MegatronBertModel")(ids, encoder_hidden_states=torch.randn(3, 4, WIDTH))


# --- labels and logits


def test_training_scores_labelled_places_only(ids, labels):
    model = make()
    pairs = torch.tensor([0, 1, 0])
    count = int((labels != -100).sum())
    full = model(ids, labels=labels, next_sentence_label=pairs)
    assert full.prediction_logits.shape == (3, LENGTH, VOCABULARY)
    model.train()
    few = model(ids, labels=labels, next_sentence_label=pairs)
    assert few.prediction_logits.shape == (count, VOCABULARY)
    assert_near(few.prediction_logits, full.prediction_logits[labels != -100])
    asked = model(ids, labels=labels, next_sentence_label=pairs, full_logits=True)
    assert asked.prediction_logits.shape == (3, LENGTH, VOCABULARY)
    assert_near(few.loss, full.loss)
    assert_near(asked.loss, full.loss)
    assert model(ids).prediction_logits.shape == (3, LENGTH, VOCABULARY)
    masked = make("MegatronBertForMaskedLM").train()
    assert masked(ids, labels=labels).logits.shape == (count, VOCABULARY)


def test_labels_at_masked_positions(ids, labels):
    model = make()
    places = torch.tensor([[1, 4, 0], [2, 3, 5], [7, 0, 0]])
    at_places = labels.gather(1, places)
    at_places[0, 2] = at_places[2, 1:] = -100
    assert_near(
        model(ids, masked_positions=places, labels=at_places).loss,
        torch.nn.functional.cross_entropy(
            model(ids).prediction_logits.gather(1, places[..., None].expand(-1, -1, VOCABULARY)).transpose(1, 2),
            at_places,
        ),
    )
    with pytest.raises(ValueError, match="do not fit masked_positions"):
        model(ids, masked_positions=places, labels=labels)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
@pytest.mark.parametrize("name", ["MegatronBertForPreTraining", "MegatronBertForMaskedLM"])
@pytest.mark.parametrize("changes", [{}, {"is_decoder": True, "use_cache": False}, {"num_hidden_layers": 1}])
def test_the_last_layer_may_work_for_masked_places_only(ids, kernel, name, changes):
    """Without work for the others: same logits and gradients as when all hidden states are asked for."""
    places = torch.tensor([[1, 4, 0], [2, 3, 5], [7, 0, 0]])
    inputs = {"masked_positions": places, "sample_ids": torch.tensor([[1] * 5 + [2] * 5 + [0] * 2] * 3)}
    if name == "MegatronBertForPreTraining":
        inputs["sample_starts"] = torch.tensor([[0, 5]] * 3)
    results = []
    for recorded in (False, True):
        model = make(name, kernel, **changes)
        output = model(ids, output_hidden_states=recorded, **inputs)
        kept = [value for key, value in output.items() if key != "hidden_states"]
        sum(value.square().sum() for value in kept).backward()
        results.append([*kept, *gradients(model).values()])
    for one, other in zip(*results, strict=True):
        assert_near(one, other, 1e-4)


def test_pretraining_with_one_of_two_labels(ids, labels):
    model = make()
    pairs = torch.tensor([0, 1, 0])
    words_only = model(ids, labels=labels).loss
    pairs_only = model(ids, next_sentence_label=pairs).loss
    assert_near(words_only + pairs_only, model(ids, labels=labels, next_sentence_label=pairs).loss)
    assert model(ids).loss is None


@pytest.mark.parametrize("name", [name for name in megabert.__all__ if "For" in name])
@pytest.mark.parametrize("training", [False, True])
def test_all_labels_ignored_give_zero_and_zero_gradients(name, training, ids):
    model = make(name).train(training)
    inputs = ids[:, None] if "MultipleChoice" in name else ids
    if "QuestionAnswering" in name:
        given = {key: torch.full((3,), 99) for key in ("start_positions", "end_positions")}
    elif any(word in name for word in ("SequenceClassification", "MultipleChoice", "NextSentence")):
        given = {"labels": torch.full((3,), -100)}
    else:
        given = {"labels": torch.full_like(ids, -100)}
        if "PreTraining" in name:
            given["next_sentence_label"] = torch.full((3,), -100)
    loss = model(inputs, **given).loss
    assert loss.item() == 0.0
    loss.backward()
    assert all(gradient.abs().sum() == 0 for gradient in gradients(model).values())


def test_question_answering_needs_two_labels():
    with pytest.raises(ValueError, match="num_labels=3"):
        make("MegatronBertForQuestionAnswering", num_labels=3)


def test_sequence_classification_leaves_the_config_alone(ids):
    model = make("MegatronBertForSequenceClassification")
    model(ids, labels=torch.tensor([0, 1, 0]))
    assert model.config.problem_type is None


def test_too_long_sequences_are_named():
    with pytest.raises(ValueError, match=r"30 tokens.*24 positions"):
        make()(torch.ones(1, 30, dtype=torch.long))


# --- gradient accumulation


class Rows(torch.utils.data.Dataset):
    def __init__(self, **columns):
        self.columns = columns

    def __len__(self):
        return len(next(iter(self.columns.values())))

    def __getitem__(self, index):
        return {key: column[index] for key, column in self.columns.items()}


def train_once(name, rows, batch_size, accumulation, folder, trainer_class=Trainer):
    model = make(name)
    arguments = TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=batch_size, gradient_accumulation_steps=accumulation,
        max_steps=1, learning_rate=0.1, optim="sgd", lr_scheduler_type="constant", max_grad_norm=0.0, logging_steps=1,
        report_to=[], save_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = trainer_class(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return {key: value.detach().clone() for key, value in model.named_parameters()}, losses[0]


@pytest.mark.parametrize(
    "name", ["MegatronBertForMaskedLM", "MegatronBertForTokenClassification", "MegatronBertForPreTraining",
             "MegatronBertForSequenceClassification", "MegatronBertForQuestionAnswering", "MegatronBertForCausalLM"]
)  # fmt: skip
def test_accumulation_under_trainer_equals_one_large_batch(name, tmp_path):
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, VOCABULARY, (8, LENGTH), generator=generator)
    order = torch.rand(ids.shape, generator=generator)
    # The pair term needs equally many words in each micro-batch; the others get uneven ones.
    chosen = order.argsort(1) < 3 if "PreTraining" in name else order < 0.3
    labels = ids.masked_fill(~chosen, -100)
    pairs = torch.randint(0, 2, (8,), generator=generator)
    columns = {
        "MegatronBertForTokenClassification": {"labels": (labels % 2).masked_fill(~chosen, -100)},
        "MegatronBertForPreTraining": {"labels": labels, "next_sentence_label": pairs},
        "MegatronBertForSequenceClassification": {"labels": pairs},
        "MegatronBertForQuestionAnswering": {"start_positions": pairs + 2, "end_positions": pairs + 5},
    }.get(name, {"labels": labels})
    rows = Rows(input_ids=ids, **columns)
    large, large_loss = train_once(name, rows, 8, 1, tmp_path / "large")
    small, small_loss = train_once(name, rows, 2, 4, tmp_path / "small")
    assert small_loss == pytest.approx(large_loss, abs=2e-4)
    for key, value in large.items():
        assert_near(small[key], value)


# --- parameters


def test_untied_embeddings_have_no_dead_parameter(ids, labels, tmp_path):
    model = make(tie_word_embeddings=False)
    assert model.cls.predictions.decoder.weight is not model.bert.embeddings.word_embeddings.weight
    model(ids, labels=labels, next_sentence_label=torch.tensor([0, 1, 0])).loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    with torch.no_grad():
        model.cls.predictions.decoder.bias.normal_()
    model.save_pretrained(tmp_path / "ours")
    theirs = transformers.MegatronBertForPreTraining.from_pretrained(tmp_path / "ours").eval()
    assert_near(theirs(ids).prediction_logits, model(ids).prediction_logits)
    theirs.save_pretrained(tmp_path / "theirs")
    again, report = megabert.MegatronBertForPreTraining.from_pretrained(tmp_path / "theirs", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert_near(again(ids).prediction_logits, model(ids).prediction_logits)


def test_binary_head_can_be_left_out(ids, labels, tmp_path):
    model = megabert.MegatronBertForPreTraining(make_config(), add_binary_head=False)
    assert model.cls.seq_relationship is None and model.bert.pooler is None
    output = model(ids, labels=labels)
    assert output.seq_relationship_logits is None
    output.loss.backward()
    assert not [name for name, parameter in model.named_parameters() if parameter.grad is None]
    with pytest.raises(ValueError, match="binary head"):
        model(ids, next_sentence_label=torch.tensor([0, 1, 0]))
    model.save_pretrained(tmp_path)
    assert megabert.MegatronBertForPreTraining.from_pretrained(tmp_path).cls.seq_relationship is None


@pytest.mark.parametrize("tied", [True, False])
def test_resizing_the_vocabulary(ids, tied):
    model = make(tie_word_embeddings=tied)
    with torch.no_grad():
        before = model(ids).prediction_logits
    model.resize_token_embeddings(VOCABULARY + 5)
    assert model.config.vocab_size == VOCABULARY + 5
    with torch.no_grad():
        after = model(ids).prediction_logits
    assert after.shape[-1] == VOCABULARY + 5
    assert_near(after[..., :VOCABULARY], before)
    head = model.cls.predictions
    assert (head.decoder.weight is model.bert.embeddings.word_embeddings.weight) is tied
    if tied:
        assert head.bias is head.decoder.bias
    model.train()(ids, labels=ids).loss.backward()


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing_learns_the_same_with_dropout(ids, labels, reentrant):
    results = []
    for checkpointing in (False, True):
        model = make(hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        torch.manual_seed(11)
        model(ids, labels=labels, next_sentence_label=torch.tensor([0, 1, 0])).loss.backward()
        results.append(gradients(model))
    for name, gradient in results[0].items():
        assert_near(results[1][name], gradient, 1e-6)


def test_float32_norms_and_embeddings_in_a_half_model(ids, labels):
    exact = make()
    expected = exact(ids, labels=labels).loss
    model = make().to(torch.bfloat16).train()
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm | torch.nn.Embedding):
            module.float()
    model.tie_weights()
    output = model(ids, labels=labels, next_sentence_label=torch.tensor([0, 1, 0]))
    assert output.prediction_logits.dtype == torch.bfloat16 and output.loss.dtype == torch.float32
    output.loss.backward()
    assert model.bert.embeddings.word_embeddings.weight.grad.dtype == torch.float32
    assert model.bert.encoder.ln.weight.grad.dtype == torch.float32
    torch.testing.assert_close(model.eval()(ids, labels=labels).loss, expected, rtol=0.03, atol=0.03)


def test_autocast_runs_forward_and_backward(ids, labels):
    model = make(hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1).train()
    mask = torch.ones_like(ids)
    mask[0, 4:] = 0
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(ids, attention_mask=mask, labels=labels, next_sentence_label=torch.tensor([0, 1, 0])).loss
    loss.backward()
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in gradients(model).values())


def test_feed_forward_can_be_cut_over_the_sequence(ids):
    assert_near(make(chunk_size_feed_forward=3)(ids).prediction_logits, make()(ids).prediction_logits)


def test_compiled_for_export_without_breaks(ids):
    model = make("MegatronBertForMaskedLM")
    graph = torch.export.export(model, (ids,), {"attention_mask": torch.ones_like(ids)}, strict=False)
    assert_near(graph.module()(ids, attention_mask=torch.ones_like(ids)).logits, model(ids).logits)


# --- Transformers' doors


def test_all_auto_classes_give_ours(tmp_path):
    register_auto_classes()
    config = make_config()
    for auto, ours in CLASSES.items():
        assert type(getattr(transformers, auto).from_config(config)) is ours
    transformers.MegatronBertForMaskedLM(make_config()).save_pretrained(tmp_path)
    assert type(transformers.AutoModelForMaskedLM.from_pretrained(tmp_path)) is megabert.MegatronBertForMaskedLM
    assert len(CLASSES) == 9


def test_importing_the_package_imports_no_torch():
    code = (
        "import sys, megabert; assert 'torch' not in sys.modules and 'transformers' not in sys.modules; dir(megabert)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(AttributeError, match="nothing_such"):
        megabert.nothing_such  # noqa: B018


def test_fill_mask_pipeline(tmp_path):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "on", "mat"]
    (tmp_path / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
    tokenizer = transformers.BertTokenizer(vocab=str(tmp_path / "vocab.txt"))
    model = make("MegatronBertForMaskedLM", vocab_size=len(words))
    fill = transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer, device="cpu")
    answers = fill("the [MASK] sat on the mat", top_k=3)
    assert len(answers) == 3 and all(answer["token_str"] in words for answer in answers)


def test_a_training_batch_compiles_to_one_graph(ids):
    """Packed rows with masked places and dropout of 0: the captured graph answers as the model does."""
    model = make().train()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    inputs = {
        "input_ids": ids,
        "sample_ids": torch.tensor([[1] * 6 + [2] * 6] * 3),
        "sample_starts": torch.tensor([[0, 6]] * 3),
        "masked_positions": torch.tensor([[1, 4, 0], [2, 3, 5], [7, 0, 0]]),
    }
    given, expected = compiled(**inputs), model(**inputs)
    assert_near(given.prediction_logits, expected.prediction_logits)
    assert_near(given.seq_relationship_logits, expected.seq_relationship_logits)
    given.prediction_logits.square().sum().backward()
    assert model.bert.encoder.layer[0].attention.self.query.weight.grad.abs().sum() > 0


class PairTrainer(Trainer):
    """The README's."""

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, words = super().get_batch_samples(epoch_iterator, num_batches, device)
        pairs = sum(batch["next_sentence_label"].ne(-100).sum() for batch in batches)
        return [{**batch, "num_pairs_in_batch": pairs} for batch in batches], words


def test_uneven_pairs_and_words_are_exact_when_the_pairs_are_counted(tmp_path):
    generator = torch.Generator().manual_seed(6)
    ids = torch.randint(1, VOCABULARY, (8, LENGTH), generator=generator)
    labels = ids.masked_fill(torch.rand(ids.shape, generator=generator) > 0.3, -100)
    rows = Rows(input_ids=ids, labels=labels, next_sentence_label=torch.tensor([0, 1, -100, 1, 0, -100, -100, 1]))
    large, large_loss = train_once("MegatronBertForPreTraining", rows, 8, 1, tmp_path / "large", PairTrainer)
    small, small_loss = train_once("MegatronBertForPreTraining", rows, 2, 4, tmp_path / "small", PairTrainer)
    assert small_loss == pytest.approx(large_loss, abs=2e-4)
    for key, value in large.items():
        assert_near(small[key], value)


def test_spans_outside_of_rows_are_exact_when_the_rows_are_counted():
    model = make("MegatronBertForQuestionAnswering").eval()
    ids = torch.randint(1, VOCABULARY, (4, LENGTH))
    starts = ends = torch.tensor([1, 2, LENGTH + 5, 3])
    whole = model(ids, start_positions=starts, end_positions=ends).loss
    parts = [
        model(ids[part], start_positions=starts[part], end_positions=ends[part], num_items_in_batch=3).loss
        for part in (slice(0, 2), slice(2, 4))
    ]
    assert_near(sum(parts), whole)


@pytest.mark.parametrize("kernel", ["sdpa", "eager"])
def test_a_mask_of_another_length_is_refused_though_it_forbids_nothing(ids, kernel):
    model = make("MegatronBertModel", attn_implementation=kernel).eval()
    for shape in ((len(ids), 5), (1, 1), (len(ids), LENGTH, LENGTH + 1), (len(ids), 1, 3, LENGTH)):
        with pytest.raises(ValueError, match=r"attention_mask of shape .* does not fit 12 tokens"):
            model(ids[:, :12], attention_mask=torch.ones(shape, dtype=torch.long))


def test_kernels_that_cannot_train_here_are_named():
    from megabert.models.bert.config import check_kernel

    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    check_kernel("auto", cpu, 0.1)
    check_kernel("flex", gpu, 0.0)
    for kernel in ("flex", "flash"):
        with pytest.raises(ValueError, match=f"--attention-implementation: {kernel} trains on a GPU only"):
            check_kernel(kernel, cpu, 0.0)
    with pytest.raises(ValueError, match="--attention-dropout 0"):
        check_kernel("flex", gpu, 0.1)


def test_embedding_tables_are_asked_as_modules(ids):
    # Whoever keeps weights elsewhere (accelerate) or changes them (PEFT) does it around a module's call.
    model = make("MegatronBertModel")
    asked = []
    for name, table in model.embeddings.named_children():
        table.register_forward_hook(lambda *_, name=name: asked.append(name))
    plain = model(ids).last_hidden_state
    assert set(asked) == {"word_embeddings", "token_type_embeddings", "position_embeddings", "dropout"}
    assert_near(plain, model(ids, token_type_ids=torch.zeros_like(ids)).last_hidden_state)
