"""`make passkey`: a page that enrols and uses a passkey, a minimal backend for it, and a server behind that."""
