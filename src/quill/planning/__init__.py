"""Memory, time and settings of a run before it starts."""
