"""What a training is made of: the nets of a solver, a step over parts of a batch, tests, Caffe's log."""
