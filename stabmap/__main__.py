"""`python -m stabmap` is the `stabmap` command."""

from stabmap.cli import main

main()
