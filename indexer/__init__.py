"""Both indexes: pictures, the dictionary, the l1 coder, the store, FAISS, and the build."""
