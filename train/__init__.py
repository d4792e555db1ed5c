"""The training driver: ``python -m train run PRESET``. It imports the verified core, which never imports it."""
