"""The sans-IO director: no socket, no clock, no thread, no randomness, no plugin machinery.

Private by declaration: what others may use is exported by `lvskit`.
"""
