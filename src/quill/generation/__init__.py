"""Text generation: scheduling, batching, sampling and text streams."""
