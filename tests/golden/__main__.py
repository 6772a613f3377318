"""Adds the results of the present `RULES_VERSION`."""

from tests.golden import main

main()
