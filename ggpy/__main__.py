"""`python -m ggpy` is `ggpy`."""

from ggpy.cli.main import main

if __name__ == "__main__":
    main(prog_name="ggpy")
