"""Models the lab trains, one per file, with the shapes on the lines."""
