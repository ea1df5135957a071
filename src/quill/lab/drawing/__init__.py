"""Pictures of what the instruments measure, in one style. Matplotlib is imported when the first one is drawn."""
