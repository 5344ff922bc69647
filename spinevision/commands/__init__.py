"""The commands, one file each: ``configure`` adds the options, ``run`` does the work and gives the text to print."""
