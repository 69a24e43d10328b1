#!/bin/bash
# Pretrains BERT in many processes, one for each GPU (NPROC_PER_NODE, NNODES), from the text of pretrain_bert.sh.
set -euo pipefail
set -f # patterns of files are pretrain_bert.py's to read
source "$(dirname "$0")/bert_large.sh"

exec "${LAUNCH[@]}" "$ROOT/pretrain_bert.py" "${WORD_PIECE[@]}" "${TEXT[@]}" "${TRAINING[@]}" "$@"
