"""The pure half of a release: what is observed, the next action, and the verdict on a canary."""
