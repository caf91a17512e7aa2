"""What is true of a graph: nothing here changes one."""
