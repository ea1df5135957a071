"""What attention heads and neurons do: scores by where heads attend, roles by thresholds, and cards of neurons."""
