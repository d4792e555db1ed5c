"""Problems: files in the paper's schema, generated arithmetic, and both as tasks that are dealt out step by step."""
