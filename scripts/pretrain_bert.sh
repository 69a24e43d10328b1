#!/bin/bash
# Pretrains BERT in one process, from text: loose JSON, one object a line, its text under "text".
set -euo pipefail
set -f # patterns of files are pretrain_bert.py's to read
source "$(dirname "$0")/bert_large.sh"

exec "$PYTHON" "$ROOT/pretrain_bert.py" "${WORD_PIECE[@]}" "${TEXT[@]}" "${TRAINING[@]}" "$@"
