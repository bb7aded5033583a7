"""The subcommands: each loads, calls one function of the library and renders its result."""
