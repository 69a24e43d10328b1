"""`python -m megabert.compat.megatron [SCRIPT] ...` is Megatron-LM's script of that name; left out, pretrain_bert."""

import sys

from megabert.compat.megatron.scripts import main

if __name__ == "__main__":
    sys.exit(main())
