"""click commands, thin: parse, call, print. Heavy imports stand inside the commands, so that `--help` is instant."""
