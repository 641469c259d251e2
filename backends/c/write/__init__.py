"""From a program to the text of its files."""
