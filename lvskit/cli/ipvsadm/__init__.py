"""The commands and the output of ipvsadm 1.31, carried out on a director."""
