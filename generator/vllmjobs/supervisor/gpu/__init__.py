"""The GPUs of the supervisor's children: watched in a process of its own, judged, and fenced."""
