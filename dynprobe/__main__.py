"""`python -m dynprobe` is the command `dynprobe`."""

from dynprobe.cli.main import entry_point

if __name__ == "__main__":
    entry_point()
