"""What a textbook names, once: arithmetic shared by methods, which knows nothing of them."""
