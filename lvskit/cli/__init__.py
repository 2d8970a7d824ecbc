"""The command lines: `lvskit` and `lvsadm`."""
