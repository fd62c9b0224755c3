"""DARTS on CIFAR-10: the supernet that is searched, and networks of the cells that were found."""
