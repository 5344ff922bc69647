"""Video in, dataset out: which frames, what of each is shown, and a journal so that it goes on where it was stopped."""
