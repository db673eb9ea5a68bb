"""A project: its files and commits, as environments, templates and jobs; and what a cluster plans for them."""
