"""The model folder, its way to and from the Hub, and its card: dicts, tensors and files only, never a model."""
