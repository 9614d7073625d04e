"""Files of every kind: readers that run nothing, layers found in what they read, and what `fastrnn.save` writes."""
