"""Set-up and helpers that run outside the package."""
