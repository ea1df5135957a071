"""Look inside a model from outside: activations, attention, lenses, attribution, ablation."""
