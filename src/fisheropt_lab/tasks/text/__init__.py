"""Next-byte prediction on English text."""
