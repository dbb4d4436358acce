"""`python -m eqcalc` is the command `eqcalc`."""

from eqcalc.cli import main

if __name__ == "__main__":
    main()
