"""Converting checkpoints: `convert.run`. A format of others is one file, named by its system."""
