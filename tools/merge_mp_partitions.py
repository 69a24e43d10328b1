"""Megatron-LM's script of this name, with its flags; see `megabert.compat.megatron`."""

import sys

from megabert.compat.megatron.scripts import main

if __name__ == "__main__":
    sys.exit(main(script="merge_mp_partitions"))
