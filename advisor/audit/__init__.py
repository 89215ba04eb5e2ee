"""Checks of the knowledge as a whole; nothing that answers a question imports this."""
