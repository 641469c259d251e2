"""Text of the files of a program."""
