"""Teach a pretrained encoder a task.

  megabert finetune squad --model out/ --train-file train-v1.1.json --validation-file dev-v1.1.json
  megabert finetune token-classification --model biomegatron.pt --tokenizer vocab.txt --num-attention-heads 16 \\
      --train-file train.tsv --validation-file devel.tsv --test-file test.tsv --save runs/ner
  megabert finetune mnli --model iter_0080000 --tokenizer bert-large-uncased --train-file train.tsv \\
      --validation-file dev_matched.tsv --bf16 --seeds 5

The run folder then holds model/, scores.json, predictions.jsonl and report.html, a page that shows them; `megabert
evaluate` and `megabert predict` take it.
The same command again goes on from the newest checkpoint of its run folder.
"""

from megabert.commands.finetune.command import SUMMARY, Config, run

__all__ = ["SUMMARY", "Config", "run"]
