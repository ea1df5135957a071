"""Writing text with a trained model: choosing tokens, writing them one after another, and turning them into text."""
