"""`python -m ggpy` is `ggpy`."""

from ggpy.cli.entry import main

if __name__ == "__main__":
    main()
