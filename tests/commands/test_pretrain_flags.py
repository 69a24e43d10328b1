"""Every flag of Megatron-LM's BERT pretraining is read, and none changes its meaning in silence."""

from __future__ import annotations

import pytest

from megabert import cli
from megabert import config as configuration
from megabert.commands.pretrain import Config
from megabert.commands.pretrain.beginning import with_pretrained
from megabert.models.bert.config import make_config
from megabert.tokenization.chosen import open_tokenizer
from megabert.training.former_flags import JudgedFlags, check_former_flags

WORKS = """
--presplit-sentences --layernorm-epsilon 1e-12 --fp32-tokentypes --fp32-allreduce --loss-scale 1024
--loss-scale-window 1000 --min-scale 1 --checkpoint-activations --epochs 1 --log-interval 100 --seed 1234 --save runs/x
--save-iters 100 --save-optim --save-rng --save-all-rng --load runs/x --load-optim --load-rng --load-all-rng
--resume-dataloader --eval-batch-size 4 --eval-iters 10 --eval-seq-length 128 --eval-max-preds-per-seq 20 --shuffle
--eval-text-key text --valid-data v.json --test-data t.json --deep-init --make-vocab-size-divisible-by 128
--checkpoint-num-layers 1 --exit-interval 10 --save-interval 5000 --no-save-optim --no-save-rng --no-load-optim
--no-load-rng --finetune --eval-interval 1000 --min-lr 0 --override-lr-scheduler --tensorboard-dir tb --eod-mask-loss
--reset-position-ids --reset-attention-mask --ffn-hidden-size 4096 --kv-channels 64 --onnx-safe --openai-gelu
--apply-residual-connection-post-layernorm --bert-no-binary-head --micro-batch-size 4 --global-batch-size 8
--rampup-batch-size 4 4 100 --train-samples 1000 --dataloader-type single --adam-beta1 0.9 --adam-beta2 0.999
--adam-eps 1e-8 --optimizer adam --lr-decay-samples 10 --lr-warmup-fraction .01 --lr-warmup-iters 0
--lr-warmup-samples 0 --use-checkpoint-lr-scheduler --initial-loss-scale 4294967296 --min-loss-scale 1.0
--no-query-key-layer-scaling --attention-softmax-in-fp32 --accumulate-allreduce-grads-in-fp32
--no-masked-softmax-fusion --no-bias-gelu-fusion --no-bias-dropout-fusion --activations-checkpoint-method uniform
--activations-checkpoint-num-layers 1 --use-cpu-initialization --data-path 0.7 one_text_sentence 0.3 two_text_sentence
--vocab-file vocab.txt --vocab-extra-ids 0 --mask-prob 0.15 --short-seq-prob 0.1 --mmap-warmup --data-impl mmap
--tokenizer-type BertWordPieceLowerCase --tensorboard-log-interval 100 --tensorboard-queue-size 1000 --log-params-norm
--log-num-zeros-in-grad --log-timers-to-tensorboard --log-batch-size-to-tensorboard --no-log-learnig-rate-to-tensorboard
--no-log-loss-scale-to-tensorboard --log-validation-ppl-to-tensorboard --log-memory-to-tensorboard
--exit-duration-in-mins 10 --init-method-std 0.02 --init-method-xavier-uniform --transformer-impl local --spec local
--attention-backend auto --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
--norm-epsilon 1e-5 --data-cache-path cache --train-data-path a --valid-data-path b --test-data-path c
--timing-log-level 0 --use-legacy-models --bert-embedder-type megatron --untie-embeddings-and-output-weights
--lr-warmup-init 0 --start-weight-decay 0.01 --end-weight-decay 0.1 --weight-decay-incr-style cosine
--exit-signal-handler --log-throughput --fp32-residual-connection
"""


def parse(text: str) -> Config:
    return configuration.parse(Config, text.split(), program="megabert pretrain")


def check(config: Config) -> None:
    width = config.hidden_size / config.num_attention_heads
    check_former_flags(config, head_width=width, log_interval=config.log_interval, half=config.fp16 or config.bf16)


def test_the_readme_s_command_of_2019(readme_2019):
    config = parse(readme_2019)
    check(config)
    assert (config.batch_size, config.max_preds_per_seq, config.intermediate_size) == (4, 80, 4096)
    assert (config.warmup, config.lr_decay_iters, config.tokenizer_model_type) == (0.01, 990_000, "bert-large-uncased")


def test_every_flag_is_read():
    config = parse(WORKS)
    check(config)
    assert config.train_data == ("a",) and config.recompute_num_layers == 1
    assert config.log_learning_rate_to_tensorboard is False and config.log_loss_scale_to_tensorboard is False
    assert config.save_rng is False and config.load_optim is False and config.bert_binary_head is False


@pytest.mark.parametrize(
    ("flags", "instead"),
    [
        ("--fp16 --fp32-residual-connection", "without --fp16"),
        ("--fp16-lm-cross-entropy", "always computed in float32"),
        ("--adlr-autoresume", "SIGTERM"),
        ("--use-flash-attn", "--attention-implementation flash"),
        ("--kv-channels 32", "which is 64"),
        ("--dataloader-type cyclic", "only single"),
        ("--data-impl lazy", "only mmap or infer"),
        ("--transformer-impl transformer_engine", "only local"),
        ("--spec megatron.core.models.bert layer", "only local"),
        ("--ckpt-format torch_dist", "megabert convert"),
        ("--tensorboard-log-interval 1", "--log-interval"),
        ("--wandb-project mine", "metrics.jsonl"),
    ],
)
def test_what_would_change_the_result_is_refused(flags, instead):
    config = parse(flags)
    with pytest.raises(ValueError) as caught:
        check(config)
    message = str(caught.value)
    assert instead in message and "\n" not in message
    assert flags.removeprefix("--fp16 ").split()[0] in message


def test_pretrained_bert_begins_with_the_model_of_the_tokenizers_name(tmp_path):
    known = with_pretrained(parse("--pretrained-bert --tokenizer-model-type megatron-bert-345m-uncased"))
    assert (str(known.load), known.finetune, known.pretrained_bert) == ("megatron-bert-345m-uncased", True, False)
    (tmp_path / "names" / "ours").mkdir(parents=True)
    kept = with_pretrained(parse(f"--pretrained-bert --tokenizer ours --cache-dir {tmp_path / 'names'}"))
    assert kept.load == tmp_path / "names" / "ours" and kept.finetune
    for flags, said in (
        ("--tokenizer bert-large-cased", "no Megatron BERT is called bert-large-cased"),
        ("--tokenizer ours --load run", "--pretrained-bert and --load name two beginnings"),
        ("", "which one"),
    ):
        with pytest.raises(ValueError, match=said):
            with_pretrained(parse(f"--pretrained-bert {flags}"))
    assert with_pretrained(parse("--seed 3")) == parse("--seed 3")


def test_extra_ids_have_an_embedding():
    sizes = [make_config(parse(f"--vocab-extra-ids {count}"), 30522).vocab_size for count in (0, 70, 71)]
    assert sizes == [30592, 30592, 30720]


def test_flags_that_were_not_given_leave_no_trace():
    assert not [name for name in JudgedFlags.__annotations__ if name in configuration.show(Config())]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tokenizer-path a.model --vocab-file b.txt", "--tokenizer-path and --vocab-file name two"),
        ("--tokenizer-type GPT2BPETokenizer", "needs --vocab-file vocab.json and --merge-file"),
        ("--tokenizer-type CharacterLevelTokenizer --vocab-file v.txt", "has no vocabulary"),
        ("--merge-file merges.txt", "--merge-file needs the vocabulary"),
        ("--tokenizer-type Word", "'Word' is not one of BertWordPieceTokenizer"),
        ("--tokenizer-model-type unigram", "kind of SentencePiece"),
    ],
)
def test_tokenizers_that_contradict_each_other(flags, message):
    with pytest.raises(ValueError, match=message):
        open_tokenizer(parse(flags))


def test_evaluation_data_is_read_in_its_own_way():
    config = parse(
        "--train-data a --valid-data b --eval-text-key body --eval-seq-length 128 --eval-max-preds-per-seq 20"
    )
    valid = config.of("valid_data")
    assert (valid.text_key, valid.seq_length, valid.max_preds_per_seq) == ("body", 128, 20)
    assert config.of("train_data") is config
    with pytest.raises(ValueError, match="--eval-seq-length is for --valid-data"):
        parse("--train-data a --eval-seq-length 128").of("train_data")


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--split a,b,c", "--split: 'a,b,c' is not one to three shares"),
        ("--split -1,2,3", "--split: '-1,2,3' is not one to three shares"),
        ("--mask-prob 0.0001 --seq-length 64", "--mask-prob: 0.0001 of the 61 tokens of a sample is less than one"),
        ("--seed 99999999999999999999999", "--seed: 99999999999999999999999 is over 9223372036854775807"),
    ],
)
def test_values_that_cannot_be_are_refused_before_any_work(flags, said, capsys):
    assert cli.main(["pretrain", "--train-data", "no-such-file", *flags.split()]) == 2
    assert said in capsys.readouterr().err
