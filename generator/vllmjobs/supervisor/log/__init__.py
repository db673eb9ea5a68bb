"""The log: the lines of the children, and the supervisor's own events, as JSON on stdout."""
