"""`python -m vllmjobs`."""

from vllmjobs.cli import main

main(prog_name="vllmjobs")
