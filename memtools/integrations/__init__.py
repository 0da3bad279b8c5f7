"""Ways into other people's training loops; each module is imported only when it is asked for."""
