"""An offline judge: captions of photos against references and boxes, by words alone."""
