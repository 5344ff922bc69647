"""A model as one file for another engine, compared with the model before it appears, and that file used as the model is."""
