"""Data sets: records of texts, chats, images and videos become packed batches of tokens."""
