"""Transformers' converter by its old name and with its old arguments; see `megabert.compat.huggingface`."""

import sys

from megabert.compat.huggingface import main

if __name__ == "__main__":
    sys.exit(main())
