"""Training as Caffe's solvers do it: rates, updates, solver states and snapshots. Knows no data and no loop."""
