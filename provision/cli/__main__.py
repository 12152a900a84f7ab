"""`python -m provision.cli`: deployctl without its console script."""

from provision.cli.app import main

main()
