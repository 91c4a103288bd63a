"""Photographs, through a few codes and back."""
