"""Warmup: what is called before serving, once per process, within a limit, one worker of a machine ahead."""
