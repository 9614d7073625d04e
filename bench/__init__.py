"""fastrnn against the peers that are installed: verified first, then timed turn by turn, beside the roofline.

``fastrnn bench`` runs it. `shapes` says what is measured, `peers` by whom, `timing` how, `roofline` what the machine
could do at best; `worker` measures in a process of its own for each number of threads, `session` starts the workers and
collects what they find.
"""
