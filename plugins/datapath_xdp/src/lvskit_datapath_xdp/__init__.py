"""The kernel fast path of lvskit: known connections are forwarded by XDP."""
