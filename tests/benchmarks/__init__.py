"""Tables of accuracy and speed, and the methods that the package is held against."""
