"""One model of what a director is told, in three notations: TOML, ipvsadm lines, live state."""
