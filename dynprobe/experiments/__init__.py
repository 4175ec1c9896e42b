"""Whole experiments from parts: train with capture on, compare, report."""
