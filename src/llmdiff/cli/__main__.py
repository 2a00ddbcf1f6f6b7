"""`python -m llmdiff.cli`, for launchers that start modules."""

from llmdiff.cli.main import main

main()
