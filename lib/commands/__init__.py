"""What `python -m lib COMMAND` does, a module a command."""
