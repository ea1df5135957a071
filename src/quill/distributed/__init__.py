"""One run in several processes: who takes part, what they agree on, and the numbers that they exchange."""
