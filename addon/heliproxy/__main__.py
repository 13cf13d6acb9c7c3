"""`python -m heliproxy` is the `heliproxy` command."""

from heliproxy.cli import main

if __name__ == "__main__":
    main(prog_name="heliproxy")
