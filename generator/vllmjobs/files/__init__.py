"""Files that vllmjobs writes: folders that are nobody else's, and logs that are rotated."""
