"""The command line: where people meet everything else. One file a command; nothing imports this room.

`main.py` holds the table of commands and loads only the one that was asked for.
"""
