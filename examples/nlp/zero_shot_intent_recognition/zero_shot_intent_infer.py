"""NeMo's script of this name and with its settings; see `megabert.compat.nemo`."""

import sys

from megabert.compat.nemo.scripts import main

if __name__ == "__main__":
    sys.exit(main(script="zero_shot_intent_infer"))
