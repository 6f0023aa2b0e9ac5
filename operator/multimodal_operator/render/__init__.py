"""One module per kind of child: wish → object, without I/O and without looking at what is there."""
