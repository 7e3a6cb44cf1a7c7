"""Faces for serving and data stacks that people already run, each thin over `stacks.predictor.Predictor`."""
