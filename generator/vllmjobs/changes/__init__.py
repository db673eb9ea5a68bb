"""Two jobs, or a plan of Nomad's, to what changes; and that as text, Markdown or JSON."""
