#!/bin/bash
# Pretrains BERT in one process, from the text of pretrain_bert.sh, with a SentencePiece tokenizer. It is trained
# (VOCAB_SIZE entries) if there is none at TOKENIZER_PATH; the other scripts can then use it.
set -euo pipefail
set -f # patterns of files are pretrain_bert.py's to read
source "$(dirname "$0")/bert_large.sh"

exec "$PYTHON" "$ROOT/pretrain_bert.py" \
    --tokenizer-type SentencePieceTokenizer \
    --tokenizer-model-type "${TOKENIZER_MODEL_TYPE:-bpe}" \
    --tokenizer-path "${TOKENIZER_PATH:-tokenizer.model}" \
    "${TEXT[@]}" "${TRAINING[@]}" "$@"
