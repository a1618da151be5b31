"""Data sets of images and videos: finds and reads the files, and stores the codes as shards."""
