"""Evaluation of a model on a test set: what `test.py` does once PyTorch is imported."""
