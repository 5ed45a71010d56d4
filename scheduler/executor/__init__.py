"""Runs batches: runners (a loaded model version) on instances (an execution slot of a device).

The only package that imports torch.
"""
