"""Pictures: the files of a folder, read and decoded for the encoder, and as thumbnails."""

from indexer.pictures.files import formats, max_pixels, quiet_pillow, read_picture, thumbnail
from indexer.pictures.folders import Picture, find_pictures, folder_labels, hash_files, read_pictures
from indexer.pictures.passed import Excluded, Skipped, check_patterns, summarised

__all__ = [
    "Excluded",
    "Picture",
    "Skipped",
    "check_patterns",
    "find_pictures",
    "folder_labels",
    "formats",
    "hash_files",
    "max_pixels",
    "quiet_pillow",
    "read_picture",
    "read_pictures",
    "summarised",
    "thumbnail",
]
