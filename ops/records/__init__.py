"""The bytes on disk: Datums, LMDB, HDF5, binaryproto, image lists."""
