"""The story that `vllmjobs-sandbox` tells, and the pages and faults of the runbooks."""
