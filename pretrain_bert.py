"""Megatron-LM's BERT pretraining by its old name and with its old flags; see `megabert.compat.megatron`."""

import sys

from megabert.compat.megatron.scripts import main

if __name__ == "__main__":
    sys.exit(main(script="pretrain_bert"))
