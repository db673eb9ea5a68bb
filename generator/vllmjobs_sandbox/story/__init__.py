"""The story that scripts/sandbox tells, and the pages and faults of the runbooks."""
