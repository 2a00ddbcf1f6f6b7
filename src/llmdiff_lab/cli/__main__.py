"""`python -m llmdiff_lab.cli`, for launchers that start modules."""

from llmdiff_lab.cli.main import main

main()
