"""The daemon: the Director behind a control socket, beside a datapath."""
