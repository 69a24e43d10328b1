"""NeMo's script of this name and with its flags; see `megabert.compat.nemo`."""

import sys

from megabert.compat.nemo.scripts import main

if __name__ == "__main__":
    sys.exit(main(script="get_squad"))
