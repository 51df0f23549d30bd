from search.cli import queries

queries()
