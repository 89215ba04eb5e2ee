"""`python -m advisor` is `medssl`."""

from .cli import main

if __name__ == "__main__":
    main(prog_name="medssl")
