"""Text ↔ tokens ↔ batches: the first room on the way text → tokens → model → training → generation → people.

Read `tokenizer` (text to numbers and back), then `corpus` (which text; `formats` reads a file, `download` fetches one),
then `dataset` (tokens on disk, and the batches cut from them). NumPy only: nothing here needs torch.
"""
