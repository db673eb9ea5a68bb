"""The typed model of an environment: what one YAML file says, merged, checked and located."""
