"""`python -m vllmjobs.supervisor`: the same as `vllmjobs-supervise`."""

from vllmjobs.supervisor.supervise import main

main()
