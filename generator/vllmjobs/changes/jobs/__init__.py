"""A job as a tree of the jobspec's own words, whether it was written as HCL or registered with Nomad."""
