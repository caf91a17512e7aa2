"""Sessions, providers, and what is kept between blocks."""
