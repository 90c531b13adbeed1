"""Networks in other forms, for other people's programs."""
