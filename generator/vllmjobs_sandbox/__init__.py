"""The sandbox: a real Consul, Nomad, Fabio and nginx on loopback, with simulated GPUs.

`scripts/sandbox` runs it for a person, and it is the fixture of tests/cluster. Read in this order:
`cluster` (start and stop), `jobs` (what is done with it), `story` (the release that is told), `release`
(a job of a test's own); below them `ports`, `process`, `leftovers`, `consul`, `nomad`, `programs`,
`traffic`, `evidence`, `nginx`. The parts that stand in for hardware: `simgpu` (a Nomad device plugin),
`standin` (an engine without a model). `docker` runs a Docker engine for the tests of the docker driver.
"""
