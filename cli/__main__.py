"""`python -m cli` is `prune`."""

from cli.main import main

main()
