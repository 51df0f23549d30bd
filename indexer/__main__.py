from indexer.cli import index

index()
