"""``python -m eventdriven_sync`` is the command ``eventdriven``."""

from eventdriven_sync.cli import main

if __name__ == "__main__":
    main()
