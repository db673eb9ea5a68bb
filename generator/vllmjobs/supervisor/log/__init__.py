"""The lines of the supervisor's children, and its own, as JSON on stdout."""
