"""Makers of the files that follow from the code, one module for each kind; scripts/generate runs them all."""
