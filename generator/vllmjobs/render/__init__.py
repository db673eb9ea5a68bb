"""An environment, to the HCL of one Nomad job."""
