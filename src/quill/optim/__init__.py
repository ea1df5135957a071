"""Update rules of the optimizer: AdamW, Muon, and row-wise Adam for embedding tables."""
