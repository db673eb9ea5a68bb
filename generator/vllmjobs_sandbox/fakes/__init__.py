"""Stand-ins for services on the internet: a model hub, a bucket, a forge."""
