"""The story of a fit, on one page."""
