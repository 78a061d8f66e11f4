"""Pages about factors: HTML out of plain findings, with nothing but the standard library."""
