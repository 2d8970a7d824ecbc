"""Datapaths: what carries packets between the network and the Director."""
