"""Offline tokenization: corpora of images and text become shards of VQ codes and token ids."""
