"""``python -m mechlab`` is the ``mechlab`` program."""

from mechlab.cli.main import main

main()
