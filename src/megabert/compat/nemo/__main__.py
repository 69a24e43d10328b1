"""`python -m megabert.compat.nemo SCRIPT ...` is NeMo's script of that name."""

import sys

from megabert.compat.nemo.scripts import main

if __name__ == "__main__":
    sys.exit(main())
