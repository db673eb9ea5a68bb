"""A project: its files and commits as environments, templates and jobs, and a cluster's plans for them."""
