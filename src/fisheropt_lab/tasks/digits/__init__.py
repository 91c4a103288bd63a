"""Handwritten digits: which of ten is it?"""
