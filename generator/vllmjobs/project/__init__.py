"""A project: its files and commits, as environments, templates and jobs; what a cluster plans for them."""
