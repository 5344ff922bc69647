"""From a folder of frames and masks to batches."""
