"""Offline jobs: corpora of pictures and text become shards of VQ codes and token ids."""
