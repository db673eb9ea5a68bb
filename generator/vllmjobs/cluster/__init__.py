"""Clients of what runs: Nomad, Consul, the metrics of instances, Prometheus."""
