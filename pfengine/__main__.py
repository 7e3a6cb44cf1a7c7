"""`python -m pfengine` is `pfengine`."""

from .cli import main

if __name__ == "__main__":
    main()
