"""``python -m idealmix`` and ``accelerate launch -m idealmix``."""

from idealmix.cli import main

main()
