"""Steps through the library for C, and beside it RTNeural."""
