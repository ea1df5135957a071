"""What attention heads do: scores by where they attend, and roles by thresholds."""
