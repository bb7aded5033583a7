"""Subcommands of `ftcli`: each module parses options, calls one function and prints its result."""
