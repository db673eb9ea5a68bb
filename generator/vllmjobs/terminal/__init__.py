"""The one way to the terminal, for whatever is printed."""
