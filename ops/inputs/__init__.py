"""Everything that can hold images, read as one list: lists, folders, tables, tars, IDX, CIFAR-10, LMDB, LevelDB, HDF5.

`listing.open_listing` turns any of them into an ImageList; `fetch.Fetcher` gives the bytes or pixels behind a line.
An image inside a container has an ADDRESS, CONTAINER#MEMBER: shard.tar#cat/1.jpg, data_batch_1.bin#17, lmdb#00000017.
"""
