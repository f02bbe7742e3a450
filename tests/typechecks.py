"""The check that the tests put around functions: arguments and results are as annotated."""

from beartype import BeartypeConf, beartype

# An int is also a float, as in PEP 484.
check = beartype(conf=BeartypeConf(is_pep484_tower=True))
