"""From a model and a dataset to numbers a reviewer can rely on."""
