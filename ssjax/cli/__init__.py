"""What every verb shares on the command line: start, flags, help, one-line errors, exit codes."""
