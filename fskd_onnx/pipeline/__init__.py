"""The stories of ``fit`` and ``match``, on one page each."""
