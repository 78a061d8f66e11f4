"""What factors mean: importance over layers, strongest contexts, words. NumPy only, no torch."""
