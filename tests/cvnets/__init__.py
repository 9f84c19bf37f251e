"""A small stand-in for apple/ml-cvnets, which cannot be installed beside the tests: the same module paths, class names, attribute names
and forwards of its MobileViT blocks, written anew; constructors take no `opts`."""
