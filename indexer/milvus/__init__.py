"""An index in Milvus, a server for more pictures than one machine holds, or in a folder through milvus-lite."""

from indexer.milvus.address import Address, is_address, parse_address, shown_place
from indexer.milvus.option import store_option

__all__ = ["Address", "is_address", "parse_address", "shown_place", "store_option"]
