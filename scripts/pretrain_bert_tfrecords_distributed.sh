#!/bin/bash
# Pretrains BERT in many processes from samples that were stored with their masks, as create_pretraining_data.py
# writes them. So does, for each of the three sets (TRAIN_DATA, VALID_DATA, TEST_DATA: files or patterns):
#   megabert tokenize --input train.jsonl --tokenizer bert-large-uncased --output tfrecords/train --to tfrecord \
#       --seq-length 512 --max-preds-per-seq 80
set -euo pipefail
set -f # patterns of files are pretrain_bert.py's to read
source "$(dirname "$0")/bert_large.sh"

exec "${LAUNCH[@]}" "$ROOT/pretrain_bert.py" "${WORD_PIECE[@]}" \
    --use-tfrecords \
    --train-data ${TRAIN_DATA:-tfrecords/train*.tfrecord} \
    --valid-data ${VALID_DATA:-tfrecords/valid*.tfrecord} \
    --test-data ${TEST_DATA:-tfrecords/test*.tfrecord} \
    "${TRAINING[@]}" "$@"
