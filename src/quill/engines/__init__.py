"""Engines: token ids in, next-token ids and logits out. They differ in speed, not in what they generate."""
