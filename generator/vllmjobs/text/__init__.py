"""Plain text and words that every room may use: English, the shape of JSON, Nomad's states."""
