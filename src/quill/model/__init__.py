"""What a GPT is: its shape, its layers and its cache. Imports PyTorch and nothing else of ours."""
