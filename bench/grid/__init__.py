"""Points of the grid: what is run, verified and timed, in processes of their own."""
