"""Train a Megatron BERT from text or from indexed token files.

  megabert pretrain --train-data wiki.jsonl --tokenizer bert-large-uncased --num-layers 6 --hidden-size 384 \\
      --num-attention-heads 6 --seq-length 128 --batch-size 32 --train-iters 20000 --save runs/small
  megabert pretrain --config recipes/bert-small-cpu.toml --train-data notes/*.txt
  torchrun --nproc-per-node 8 -m megabert pretrain --config recipes/bert-345m.toml --tensor-model-parallel-size 2

The same command again goes on from the newest checkpoint of its run folder.
"""

from megabert.commands.pretrain.command import SUMMARY, Config, run

__all__ = ["SUMMARY", "Config", "run"]
