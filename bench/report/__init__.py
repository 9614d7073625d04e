"""What a run found, on the screen and in files."""
