"""How a GPT learns: batches in, weights out. The loop, its optimizer and schedule, its checkpoints and its reports."""
