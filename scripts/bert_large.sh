# What the four scripts beside this file share: the flags of BERT-large, and how processes are started. It is read by
# them, not run. A variable that is set wins over the value here, and flags given to a script win over both:
#   TRAIN_DATA=notes.jsonl NUM_LAYERS=6 HIDDEN_SIZE=384 NUM_ATTENTION_HEADS=6 bash scripts/pretrain_bert.sh --seed 7

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PYTHON=${PYTHON:-python}
SEQ_LENGTH=${SEQ_LENGTH:-512}
HIDDEN_SIZE=${HIDDEN_SIZE:-1024}
TRAIN_ITERS=${TRAIN_ITERS:-1000000}
PRECISION=${PRECISION---fp16 --fp32-layernorm --fp32-embedding} # may be empty: float32

TRAINING=(
    --batch-size "${BATCH_SIZE:-4}"
    --vocab-size "${VOCAB_SIZE:-30522}"
    --max-preds-per-seq "${MAX_PREDS_PER_SEQ:-80}"
    --seq-length "$SEQ_LENGTH"
    --max-position-embeddings "$SEQ_LENGTH"
    --num-layers "${NUM_LAYERS:-24}"
    --hidden-size "$HIDDEN_SIZE"
    --intermediate-size "${INTERMEDIATE_SIZE:-$((4 * HIDDEN_SIZE))}"
    --num-attention-heads "${NUM_ATTENTION_HEADS:-16}"
    --hidden-dropout 0.1
    --attention-dropout 0.1
    --train-iters "$TRAIN_ITERS"
    --lr "${LR:-0.0001}"
    --lr-decay-style linear
    --lr-decay-iters "${LR_DECAY_ITERS:-$(((TRAIN_ITERS * 99 + 99) / 100))}"
    --warmup .01
    --weight-decay 1e-2
    --clip-grad 1.0
    $PRECISION
    --hysteresis 2
    --num-workers "${NUM_WORKERS:-2}"
    ${SAVE:+--save "$SAVE"}
)

# Names of corpora, such as wikipedia, are those of the table [corpora] in corpora.toml of the working folder.
TEXT=(
    --train-data ${TRAIN_DATA:-wikipedia}
    --loose-json
    --text-key "${TEXT_KEY:-text}"
    --split "${SPLIT:-1000,1,1}"
    --lazy-loader
)

WORD_PIECE=(
    --tokenizer-type BertWordPieceTokenizer
    --cache-dir "${CACHE_DIR:-temp_cache_dir}"
    --tokenizer-model-type "${TOKENIZER_MODEL_TYPE:-bert-large-uncased}"
)

# Several machines: the same command on each, with its own NODE_RANK, and MASTER_ADDR the name of number 0.
LAUNCH=(
    "$PYTHON" -m torch.distributed.run
    --nproc-per-node "${NPROC_PER_NODE:-8}"
    --nnodes "${NNODES:-1}"
    --node-rank "${NODE_RANK:-0}"
    --master-addr "${MASTER_ADDR:-localhost}"
    --master-port "${MASTER_PORT:-6000}"
)
