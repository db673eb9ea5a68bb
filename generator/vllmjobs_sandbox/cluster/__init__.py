"""A real Nomad, Consul, Fabio, nginx, Docker and Prometheus on loopback."""
