"""Pictures: the files of a folder, read and decoded as the squares an encoder takes, and as thumbnails."""

from indexer.pictures.files import FORMATS, quiet_pillow, read_picture, thumbnail
from indexer.pictures.folders import Picture, Skipped, find_pictures, folder_labels, hash_files, read_pictures

__all__ = [
    "FORMATS",
    "Picture",
    "Skipped",
    "find_pictures",
    "folder_labels",
    "hash_files",
    "quiet_pillow",
    "read_picture",
    "read_pictures",
    "thumbnail",
]
