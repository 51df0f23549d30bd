from indexer.cli import builds

builds()
