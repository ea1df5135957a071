"""What all commands share: flags and their values, help pages, standard streams."""
