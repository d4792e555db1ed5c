"""The recipes inside trainers of others; imported by nothing here, and each needs the library that it is named for."""
