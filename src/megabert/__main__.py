"""`python -m megabert VERB ...`."""

from megabert.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
