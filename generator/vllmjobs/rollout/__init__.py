"""What a release does next, given what was observed, and whether a canary is well."""
