"""Everything that touches the cluster as a cluster; knows nothing of images."""
