"""Whole programs with and without fastrnn, call by call: what is won where other threads and caches are about, too."""
