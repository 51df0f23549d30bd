"""`python -m eval.bench`, which `make bench` calls."""

from eval.bench.common import main

main()
